"""Words, style and script of the report: Chinese and English side by side, one of them shown."""

from html import escape
from typing import Final

TEXTS: Final[dict[str, tuple[str, str]]] = {
    "title": ("Headframe demo report", "Headframe 演示报告"),
    "subtitle": (
        "Hard samples up, better models down: the whole loop on one machine, {seconds} s",
        "难样本上行，更好的模型下行：单机完整闭环，用时 {seconds} 秒",
    ),
    "unseen": ("Sites never trained on", "未训练过的矿点"),
    "seen": ("Sites trained on", "训练过的矿点"),
    "points": ("{points} points", "{points} 个百分点"),
    "labels": ("labelled samples", "已标注样本"),
    "of_samples": ("of {samples} stored", "共存储 {samples} 个"),
    "checks_hold": ("checks hold", "项检查通过"),
    "survived": ("{kills} × kill -9 survived", "经受 {kills} 次 kill -9"),
    "no_kills": ("nothing was killed", "未执行强杀"),
    "accuracy": ("Accuracy per site", "各矿点准确率"),
    "accuracy_note": (
        "Balanced accuracy, mean over scenarios, on pictures that nobody labelled, with the very release that each "
        "gateway runs.",
        "各场景平衡准确率的平均值，在未标注的图片上测得，使用各网关实际运行的版本。",
    ),
    "before": ("before", "之前"),
    "after": ("after", "之后"),
    "cliff": (
        "The cliff: the first release loses {points} points where it was not trained; {left} are left after the last "
        "round.",
        "断崖：首个版本在未训练的矿点下降 {points} 个百分点；最后一轮之后剩余 {left} 个。",
    ),
    "rounds": ("Rounds", "训练轮次"),
    "rounds_note": (
        "Each round adds the oracle's labels to the sums and solves the heads again; the gate decides on release.",
        "每轮把新标注加入统计量，重新求解分类头，通过门禁后才发布。",
    ),
    "first_release": ("first release", "首个版本"),
    "round": ("round {number}", "第 {number} 轮"),
    "release": ("release", "版本"),
    "gate": ("gate", "门禁"),
    "passed": ("passed", "通过"),
    "refused": ("refused", "拒绝"),
    "gates": ("Gates", "门禁结果"),
    "gates_note": (
        "A candidate is compared with the running release as a whole, per class, and per site. A drop stops it when it "
        "exceeds the tolerance and is no accident (McNemar's exact test).",
        "候选版本与现行版本按整体、类别和矿点逐一比较；下降超出容差且非偶然（McNemar 精确检验）则不予发布。",
    ),
    "comparison": ("compared on", "比较对象"),
    "running": ("running", "现行"),
    "candidate": ("candidate", "候选"),
    "p_value": ("p", "p"),
    "heads": ("Heads", "分类头"),
    "no_gate": ("No comparison was recorded.", "没有比较记录。"),
    "samples": ("Samples that did it", "起作用的样本"),
    "samples_note": (
        "Chosen by the edge under its budget, labelled by the oracle. Bars: rank among recent frames of the camera.",
        "由边缘端在预算内挑选，由标注者标注。条形表示在该摄像头近期画面中的排名。",
    ),
    "no_samples": ("No labelled sample was recorded.", "没有标注样本记录。"),
    "delivery": ("Delivery", "传输"),
    "site": ("site", "矿点"),
    "stored": ("samples", "样本"),
    "labelled": ("labels", "标注"),
    "up": ("bytes up", "上行"),
    "down": ("bytes down", "下行"),
    "total": ("total", "合计"),
    "checks": ("Checks", "检查"),
    "holds": ("holds", "通过"),
    "fails": ("FAILS", "未通过"),
    "novel": ("unlike anything trained", "与训练数据差异大"),
    "abnormal": ("unusual for this camera", "与该摄像头常态不同"),
    "uncertain": ("the model was unsure", "模型不确定"),
    "trickle": ("random trickle", "随机抽样"),
    "novelty": ("novelty", "新颖"),
    "abnormality": ("abnormality", "异常"),
    "uncertainty": ("uncertainty", "不确定"),
}


def say(key: str, **values: object) -> str:
    """A caption in both languages as HTML; unknown keys are shown as they are."""
    english, chinese = (text.format(**values) for text in TEXTS.get(key, (key, key)))
    return f'<span lang="en">{escape(english)}</span><span lang="zh">{escape(chinese)}</span>'


STYLE: Final = """
:root { --ink:#18212b; --soft:#5b6774; --line:#dfe4e9; --paper:#fff; --wash:#f4f6f8; --after:#0b6e8f;
  --before:#b9c2cb; --good:#22764a; --bad:#b2332b; }
* { box-sizing:border-box; }
body { margin:0; background:var(--wash); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI","Noto Sans",
    "Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif; }
main { max-width:1080px; margin:0 auto; padding:28px 24px 60px; }
header { display:flex; justify-content:space-between; align-items:flex-start; gap:16px; }
h1 { font-size:27px; margin:0; letter-spacing:-.01em; } h2 { font-size:18px; margin:0 0 4px; }
h3 { font-size:14px; margin:14px 0 6px; }
p { margin:0 0 12px; color:var(--soft); max-width:75ch; }
section { background:var(--paper); border:1px solid var(--line); border-radius:10px;
  padding:20px 22px; margin-top:18px; }
button { font:inherit; font-size:13px; border:1px solid var(--line); background:var(--paper); color:var(--ink);
  border-radius:6px; padding:4px 12px; cursor:pointer; }
.tiles { display:grid; grid-template-columns:repeat(4,1fr); gap:14px; margin-top:20px; }
.tile { background:var(--paper); border:1px solid var(--line); border-radius:10px; padding:14px 16px; }
.tile small { color:var(--soft); display:block; } .tile b { font-size:25px; font-weight:650; white-space:nowrap;
  font-variant-numeric:tabular-nums; }
.tile i { font-style:normal; color:var(--soft); font-weight:400; }
.good { color:var(--good); } .bad { color:var(--bad); font-weight:650; }
.callout { border-left:3px solid var(--after); padding:2px 12px; margin:10px 0 0; color:var(--ink); }
svg { display:block; width:100%; height:auto; } svg text { font-size:13px; fill:var(--ink); }
svg text.soft { fill:var(--soft); font-size:12px; } svg text.figure { font-variant-numeric:tabular-nums; }
table { border-collapse:collapse; width:100%; font-size:14px; font-variant-numeric:tabular-nums; }
th { text-align:left; color:var(--soft); font-weight:500; }
th,td { padding:5px 10px 5px 0; border-bottom:1px solid var(--line); }
td.n,th.n { text-align:right; } tr.total td { font-weight:600; border-bottom:0; }
details { border-top:1px solid var(--line); padding:8px 0; } summary { cursor:pointer; }
.cards { display:grid; grid-template-columns:repeat(4,1fr); gap:14px; }
.card { border:1px solid var(--line); border-radius:8px; overflow:hidden; font-size:13px; break-inside:avoid; }
.card img { display:block; width:100%; aspect-ratio:16/9; object-fit:cover; background:#222; }
.card div { padding:8px 10px; } .card b { font-size:14px; } .card .why { color:var(--soft); }
.bar { display:grid; grid-template-columns:74px 1fr; align-items:center; gap:6px; font-size:12px; color:var(--soft); }
.card .bar { padding:0; }
.bar u { display:block; height:5px; border-radius:3px; background:var(--after); text-decoration:none; }
ul.checks { list-style:none; margin:6px 0 0; padding:0; columns:2; column-gap:28px; }
ul.checks li { break-inside:avoid; padding:2px 0; }
body:not(.zh) [lang=zh], body.zh [lang=en] { display:none; }
@media (max-width:760px) { .tiles,.cards { grid-template-columns:repeat(2,1fr); } ul.checks { columns:1; } }
@media print { body { background:#fff; } button { display:none; } section,.tile { break-inside:avoid; }
  section.long { break-inside:auto; } main { padding:0; max-width:none; } }
"""

SCRIPT: Final = """
const body = document.body, zh = /[?&]lang=zh/.test(location.search) ||
  (!/[?&]lang=en/.test(location.search) && /^zh/i.test(navigator.language));
function show(chinese) { body.classList.toggle("zh", chinese); document.documentElement.lang = chinese ? "zh" : "en"; }
document.getElementById("language").onclick = () => show(!body.classList.contains("zh"));
show(zh);
"""
