"""The console's words, in English and Chinese. One table, so that a missing translation fails a test."""

from typing import Final

LANGUAGES: Final = ("en", "zh")

TEXTS: Final[dict[str, tuple[str, str]]] = {
    "fleet": ("Fleet", "机群"),
    "review": ("Review", "样本标注"),
    "releases": ("Releases", "模型版本"),
    "site": ("Site", "矿点"),
    "gateway": ("Gateway", "网关"),
    "status": ("Status", "状态"),
    "online": ("online", "在线"),
    "offline": ("offline", "离线"),
    "release": ("Release", "模型版本"),
    "cameras": ("Cameras", "摄像头"),
    "looks": ("Frames looked at", "已看帧数"),
    "spool": ("Waiting in spool", "待上传"),
    "receipted": ("Delivered", "已送达"),
    "chosen": ("Chosen because", "选中原因"),
    "bytes_up": ("Sent", "上行流量"),
    "install": ("Last install", "最近安装"),
    "samples": ("Samples", "样本"),
    "labels": ("Labels", "标注"),
    "sites": ("Sites online", "在线矿点"),
    "running": ("Running release", "当前版本"),
    "scenario": ("Scenario", "场景"),
    "why": ("Why it was chosen", "选中原因"),
    "novelty": ("Novelty", "新颖度"),
    "abnormality": ("Abnormality", "异常度"),
    "uncertainty": ("Uncertainty", "不确定度"),
    "redundancy": ("Like one already sent", "与已上传相似"),
    "novel": ("novel: unlike what was trained", "新颖：与训练数据不同"),
    "abnormal": ("abnormal: unlike this camera's normal", "异常：与该摄像头平时不同"),
    "uncertain": ("uncertain: the model is unsure", "不确定：模型没有把握"),
    "trickle": ("random: keeps the evaluation fair", "随机抽取：保证评估公正"),
    "short_novel": ("novel", "新颖"),
    "short_abnormal": ("abnormal", "异常"),
    "short_uncertain": ("uncertain", "不确定"),
    "short_trickle": ("random", "随机"),
    "camera_starting": ("starting", "启动中"),
    "camera_live": ("live", "正常"),
    "camera_ended": ("ended", "已播完"),
    "camera_frozen": ("frozen", "画面静止"),
    "camera_dark": ("dark", "画面全黑"),
    "camera_covered": ("covered", "镜头被遮挡"),
    "camera_moved": ("moved", "视角偏移"),
    "camera_garbled": ("garbled", "码流损坏"),
    "camera_failed": ("failed", "故障"),
    "attempts": ("Refused attempts, last hour", "近一小时被拒绝的尝试"),
    "attempt_topic": ("wrote to another's topic", "向他人主题发布"),
    "attempt_subscription": ("subscribed to another's topic", "订阅他人主题"),
    "attempt_identity": ("another's identity in a message", "消息中冒用他人身份"),
    "attempt_size": ("over a bound", "超出大小限制"),
    "attempt_replay": ("a replay, or it never hears us", "重放，或收不到回执"),
    "attempt_no_certificate": ("no certificate", "未出示证书"),
    "attempt_bad_certificate": ("foreign, expired or revoked certificate", "证书不受信任、过期或已吊销"),
    "attempt_revoked": ("revoked, still connected", "已吊销但仍在连接"),
    "attempt_twice": ("one identity, two connections", "同一身份两个连接"),
    "attempt_renewal": ("a renewal that proves nothing", "无效的证书续期请求"),
    "attempt_malformed": ("a message that cannot be used", "无法使用的消息"),
    "alarms": ("Open events", "当前告警"),
    "events": ("Latest events", "最近事件"),
    "event_enter": ("began", "开始"),
    "event_persist": ("goes on", "持续"),
    "event_clear": ("over", "已解除"),
    "picture": ("picture", "截图"),
    "doubtful": ("doubtful: a detector is not to be trusted here", "存疑：检测器在此不可靠"),
    "short_doubtful": ("doubtful", "存疑"),
    "model_says": ("The model says", "模型判断"),
    "keys": ("Keys: 1–9 label · n new class · s skip · u undo", "按键：1–9 标注 · n 新类别 · s 跳过 · u 撤销"),
    "new_class": ("New class", "新类别"),
    "new_class_name": ("Name of the new class", "新类别的名称"),
    "no_gateways": (
        "No gateway has reported yet. Put the key of `headframe cloud key` into edge.toml and start the agent.",
        "还没有网关上线。把 headframe cloud key 打印的公钥填入 edge.toml，然后启动边缘代理。",
    ),
    "skip": ("Skip", "跳过"),
    "undo": ("Undo", "撤销"),
    "empty": ("Nothing waits for a label.", "没有等待标注的样本。"),
    "unsent": ("not saved yet", "尚未保存"),
    "gate": ("Gate", "评估门槛"),
    "passed": ("passed", "通过"),
    "refused": ("refused", "未通过"),
    "compared": ("Compared on", "比较集"),
    "before": ("Running", "当前"),
    "after": ("Candidate", "候选"),
    "count": ("Samples", "样本数"),
    "learn": ("Learn now", "立即训练"),
    "rounds": ("Rounds", "训练轮次"),
    "started": ("Started", "开始时间"),
    "rollback": ("Roll back to this", "回退到此版本"),
    "confirm": ("Every gateway will run this release. Go on?", "所有网关将运行此版本，是否继续？"),
    "active": ("active", "运行中"),
    "superseded": ("superseded", "已替换"),
    "heads": ("Heads per site", "各矿点模型头"),
    "personal": ("personal", "专属"),
    "shared": ("shared", "共享"),
    "kept": ("kept its old one", "保留原有"),
    "lost": ("The centre does not answer; trying again …", "中心无响应，正在重试……"),
    "language": ("中文", "English"),
}


def texts(language: str) -> dict[str, str]:
    """All words in one language."""
    column = LANGUAGES.index(language)
    return {key: pair[column] for key, pair in TEXTS.items()}


def choose_language(asked: str | None, remembered: str | None, accepted: str) -> str:
    """`?lang=`, else the cookie, else the browser's first language, else English."""
    for language in (asked, remembered):
        if language in LANGUAGES:
            return str(language)
    return "zh" if accepted.lower().startswith("zh") else "en"
