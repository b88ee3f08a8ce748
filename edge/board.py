"""What the gateway's own page shows, as HTML in English or Chinese. Pure: a reported state in, text out.

Everything a camera, a release or a site is called is text and escaped: a fault may quote what a stranger sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from common.messages import CameraState, State

LANGUAGES: Final = ("en", "zh")
WORDS: Final[dict[str, tuple[str, str]]] = {
    "title": ("gateway", "网关状态"),
    "language": ("中文", "English"),
    "release": ("Release", "模型版本"),
    "no_release": ("none yet", "尚无"),
    "compute": ("Runs on", "计算"),
    "spool": ("Spool", "待上传"),
    "spool_says": (
        "{mb:.1f} MB waiting · {accepted} accepted · {receipted} delivered · {evicted} evicted",
        "{mb:.1f} MB 待上传 · 已接收 {accepted} · 已送达 {receipted} · 已淘汰 {evicted}",
    ),
    "link": ("Centre", "中心"),
    "connected": ("connected", "已连接"),
    "disconnected": ("not connected", "未连接"),
    "link_says": ("{up:.1f} MB sent · {down:.1f} MB received", "上行 {up:.1f} MB · 下行 {down:.1f} MB"),
    "alarms": ("Open events", "当前告警"),
    "alarms_say": ("{count} since the start", "启动以来 {count} 次"),
    "config": ("Configuration", "配置"),
    "label": ("Label this site's pictures", "现场标注"),
    "cameras": ("Cameras", "摄像头"),
    "fps": ("frames/s", "帧/秒"),
    "looks_per_s": ("looks/s", "次/秒"),
    "latency": ("latency, p99", "延迟, p99"),
    "looks": ("looks", "已看"),
    "dropped": ("dropped", "丢弃"),
    "reconnects": ("reconnects", "重连"),
    "no_picture": ("no look yet", "尚无画面"),
    "state_starting": ("starting", "启动中"),
    "state_live": ("live", "正常"),
    "state_ended": ("ended", "已播完"),
    "state_frozen": ("frozen", "画面静止"),
    "state_dark": ("dark", "画面全黑"),
    "state_covered": ("covered", "镜头被遮挡"),
    "state_moved": ("moved", "视角偏移"),
    "state_garbled": ("garbled", "码流损坏"),
    "state_failed": ("failed", "故障"),
    "gear_idle": ("idle", "空闲"),
    "gear_watch": ("watch", "关注"),
    "gear_alert": ("alert", "警戒"),
}
"""One table, so that a missing translation fails a test."""
WELL: Final = ("starting", "live", "ended")
"""States of a camera that ask nothing of anybody."""
MB: Final = 1e6

_PAGE = """<!doctype html><html lang={language}><meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1"><title>{gateway}</title>
<noscript><meta http-equiv=refresh content=5></noscript>
<link rel=stylesheet href=/pages/gateway.css><script src=/pages/status.js type=module></script>
<header><h1>{gateway} <small>{site} · {title}</small></h1><a href="?lang={other}">{switch}</a></header>
<main id=board>{board}</main>"""


@dataclass(frozen=True, slots=True)
class Language:
    """One of `LANGUAGES`, and its words."""

    name: str

    @classmethod
    def choose(cls, asked: str | None, accepted: str) -> "Language":
        """What is asked for (`?lang=`), else the browser's first language (Accept-Language), else English."""
        wanted = asked if asked in LANGUAGES else accepted.strip()[:2].lower()
        return cls(wanted if wanted in LANGUAGES else "en")

    @property
    def other(self) -> str:
        """The one to switch to."""
        return LANGUAGES[1 - LANGUAGES.index(self.name)]

    def say(self, key: str, default: str = "") -> str:
        """A word; `default` for what has none."""
        texts = WORDS.get(key)
        return texts[LANGUAGES.index(self.name)] if texts else default


def render_page(now: State, language: Language, *, linked: bool) -> str:
    """The whole page."""
    return _PAGE.format(
        language=language.name,
        other=language.other,
        switch=language.say("language"),
        gateway=escape(now.gateway_id),
        site=escape(now.site_id),
        title=language.say("title"),
        board=render_board(now, language, linked=linked),
    )


def render_board(now: State, language: Language, *, linked: bool) -> str:
    """What changes on the page."""
    cameras = "".join(_camera(camera, now.alarms, language) for camera in now.cameras)
    well = sum(camera.state in WELL for camera in now.cameras)
    return (
        f"<section class=tiles>{''.join(_tiles(now, language, linked))}</section>"
        f"<h2>{language.say('cameras')} <small>{well} / {len(now.cameras)}</small></h2>"
        f"<section class=cameras>{cameras}</section>"
    )


def _tiles(now: State, language: Language, linked: bool) -> list[str]:
    say = language.say
    spool = say("spool_says").format(
        mb=now.spool_bytes / MB, accepted=now.accepted, receipted=now.receipted, evicted=now.evicted
    )
    link = say("link_says").format(up=now.bytes_up / MB, down=now.bytes_down / MB)
    tiles = [
        _tile(say("release"), now.release_id or say("no_release"), now.install),
        _tile(say("spool"), str(now.spool_rows), spool),
        _tile(say("link"), say("connected" if linked else "disconnected"), link, "good" if linked else "bad"),
        _tile(
            say("alarms"),
            str(len(now.alarms)),
            " · ".join((*now.alarms, say("alarms_say").format(count=now.events))),
            "bad" if now.alarms else "",
        ),
    ]
    if now.compute:
        name, _, why = now.compute.partition(" (")
        tiles.insert(1, _tile(say("compute"), name, why.removesuffix(")")))
    if now.config:
        outcome, _, rest = now.config.partition(": ")
        tiles.append(_tile(say("config"), outcome, rest, "bad" if outcome == "refused" else ""))
    if now.share == "updates":
        tiles.append(f"<div class=tile><a href=/label>{escape(say('label'))}</a></div>")
    return tiles


def _tile(name: str, value: str, detail: str, kind: str = "") -> str:
    return (
        f"<div class=tile><span class=soft>{escape(name)}</span><b class='{kind}'>{escape(value)}</b>"
        f"<span class=soft>{escape(detail)}</span></div>"
    )


def _camera(camera: CameraState, alarms: Sequence[str], language: Language) -> str:
    say = language.say
    name = escape(camera.camera_id, quote=True)
    gear = f"<span class='chip {escape(camera.gear)}'>{say('gear_' + camera.gear, camera.gear)}</span>"
    state = say("state_" + camera.state, camera.state)
    alarmed = any(alarm.startswith(camera.camera_id + "/") for alarm in alarms)
    picture = f"<img alt='' src='/cameras/{name}.jpg?look={camera.looks}'>" if camera.looks else ""
    figures = (
        (f"{camera.fps:.1f}", "fps"),
        (f"{camera.looks_per_s:.1f}", "looks_per_s"),
        (f"{camera.latency_ms:.0f}, {camera.latency_ms_p99:.0f} ms", "latency"),
        (str(camera.looks), "looks"),
        (str(camera.dropped), "dropped"),
        (str(camera.reconnects), "reconnects"),
    )
    cells = "".join(f"<div><b>{value}</b><span class=soft>{say(key)}</span></div>" for value, key in figures)
    return (
        f"<article class='{'' if camera.state in WELL else 'ill'}{' alarmed' if alarmed else ''}' id='camera-{name}'>"
        f"<figure data-empty='{say('no_picture')}'>{picture}</figure>"
        f"<h3>{name}<span class='state {escape(camera.state)}'>{escape(state)}</span>{gear if camera.gear else ''}</h3>"
        f"<div class=figures>{cells}</div><p>{escape(camera.detail)}</p></article>"
    )
