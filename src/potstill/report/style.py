"""How the page looks, in light and dark, wide and narrow; and its few lines of script."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

# Teacher blue, control grey, student copper: told apart with every kind of colour vision, and each has a
# mark of its own (square, ring, disc) besides. All text colours have a contrast of at least 4.5 to 1.
_LIGHT = (
    "--paper:#fcfbf8;--panel:#f4f1ea;--ink:#211e1a;--soft:#625b51;--rule:#e2dcd0;--grid:#ece7dd;"
    "--teacher:#1d5f85;--control:#60646b;--student:#b0490f;--up:#1b7045;--down:#b02a25;--mark:#fcfbf8"
)
_DARK = (
    "--paper:#171614;--panel:#211f1c;--ink:#ece7de;--soft:#a9a195;--rule:#37332d;--grid:#2b2824;"
    "--teacher:#79b8dc;--control:#a9adb5;--student:#f0985c;--up:#6cc495;--down:#f08a80;--mark:#171614"
)

STYLE = (
    f":root{{{_LIGHT};color-scheme:light}}"
    f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{_DARK};color-scheme:dark}}}}"
    f":root[data-theme=dark]{{{_DARK};color-scheme:dark}}"
    """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums;-webkit-font-smoothing:antialiased}
.top,main,footer{max-width:1120px;margin:0 auto;padding-inline:clamp(18px,4vw,40px)}
.top{display:flex;justify-content:space-between;align-items:center;padding-block:18px;color:var(--soft);
font-size:14px}
.top b{color:var(--ink);font-weight:650}
button{font:inherit;font-size:13px;color:var(--soft);background:none;border:1px solid var(--rule);
border-radius:6px;padding:3px 12px;cursor:pointer}
button:hover{color:var(--ink);border-color:var(--soft)}
:focus-visible{outline:2px solid var(--student);outline-offset:2px}
h1,.verdict{font-family:Charter,"Bitstream Charter","Sitka Text",Cambria,Georgia,serif;text-wrap:balance}
h1{font-size:20px;font-weight:400;color:var(--soft);margin:0 0 14px;overflow-wrap:anywhere}
h2{font-size:15px;font-weight:650;margin:0;line-height:1.4}
h3{font-size:14px;font-weight:650;margin:0 0 8px;overflow-wrap:anywhere}
a{color:inherit;text-decoration-color:var(--soft);text-underline-offset:3px}
small{font-size:12.5px;color:var(--soft);font-weight:400}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em}
.hero{padding:44px 0 40px}
.verdict{font-size:clamp(27px,4.4vw,44px);line-height:1.16;letter-spacing:-.012em;margin:0;max-width:22em}
.verdict strong{font-weight:600;white-space:nowrap}
.verdict em{font-style:normal}
.better .verdict em{color:var(--up)}
.worse .verdict em{color:var(--down)}
.reason{color:var(--soft);margin:14px 0 0;max-width:46em}
.gauge{position:relative;margin:30px 0 0;max-width:560px;padding-top:20px}
.gauge figcaption{font-size:14px;color:var(--soft);margin-top:10px}
.zero-name{position:absolute;top:0;transform:translateX(-50%);font-size:12.5px;color:var(--soft)}
.track{position:relative;display:block;height:14px}
.track::before{content:"";position:absolute;inset:6.5px 0 auto;border-top:1px solid var(--rule)}
.track i{position:absolute;top:50%}
.track .zero{top:-1px;bottom:-1px;border-left:1px solid var(--soft)}
.track .range{height:4px;margin-top:-2px;border-radius:2px;background:var(--student);opacity:.38}
.track .at{width:9px;height:9px;margin:-4.5px 0 0 -4.5px;border-radius:50%;background:var(--student);
border:1.5px solid var(--student)}
.track.large{height:22px}
.track.large::before{inset:10.5px 0 auto}
.track.large .range{height:8px;margin-top:-4px;border-radius:4px}
.track.large .at{width:16px;height:16px;margin:-8px 0 0 -8px;border:2px solid var(--paper)}
.track.even .at{background:var(--paper)}
.track.even .range{background:var(--control)}
.track.even .at{border-color:var(--control)}
.track.up .range,.track.up .at{background:var(--up)}
.track.up .at{border-color:var(--up)}
.track.down .range,.track.down .at{background:var(--down)}
.track.down .at{border-color:var(--down)}
.facts{display:flex;flex-wrap:wrap;gap:22px 44px;margin:36px 0 0}
.facts div{display:flex;flex-direction:column;min-width:116px}
.facts dd{order:-1;margin:0;font-size:27px;font-weight:600;letter-spacing:-.015em;line-height:1.2}
.facts dt{font-size:13.5px;color:var(--soft)}
.notes{margin-top:34px;border-left:3px solid var(--student);padding:2px 0 2px 18px;max-width:46em}
.notes ul{margin:0;padding:0;list-style:none}
.notes li+li{margin-top:8px}
section{display:grid;grid-template-columns:150px minmax(0,1fr);gap:14px 44px;border-top:1px solid var(--rule);
padding:34px 0 46px}
section h2{position:sticky;top:20px;align-self:start}
.lead,.prose p{max-width:44em;margin:0 0 24px;text-wrap:pretty}
.prose p:last-child{margin-bottom:0}
.lead{color:var(--soft)}
figure{margin:0}
figure h3 small{margin-left:6px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:34px 28px}
.triple{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,230px),1fr));gap:30px 22px}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:12.5px;fill:var(--soft)}
svg .name{font-weight:600;font-size:13px;paint-order:stroke;stroke:var(--paper);stroke-width:4px;
stroke-linejoin:round}
svg .grid{stroke:var(--grid)}
svg .axis{stroke:var(--soft);stroke-opacity:.6}
svg .line{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
svg .line.control{stroke-dasharray:5 4}
svg .band{opacity:.17}
svg .whisker{stroke-width:2;stroke-linecap:round;opacity:.55}
svg .step{stroke:var(--student);stroke-width:1.2;stroke-dasharray:2 3}
svg .even{stroke:var(--ink);stroke-dasharray:4 4;stroke-opacity:.7}
svg .gap{fill:var(--down);opacity:.25}
.teacher{--arm:var(--teacher)}.control{--arm:var(--control)}.student{--arm:var(--student)}.other{--arm:var(--soft)}
svg .line,svg .whisker{stroke:var(--arm)}
svg .band,svg .dot,svg .bar,svg .mark,svg .name{fill:var(--arm)}
svg .mark,svg .dot{stroke:var(--arm);stroke-width:2}
svg .mark.control,svg .dot.control{fill:var(--mark)}
.key{display:inline-block;width:10px;height:10px;border:2px solid var(--arm);background:var(--arm);
border-radius:50%;margin-right:7px}
.key.teacher{border-radius:1px}
.key.control{background:none}
table{border-collapse:collapse;width:100%;font-size:15px}
th,td{text-align:left;vertical-align:top;padding:8px 14px 8px 0;font-weight:400}
thead th,thead td{border-bottom:1px solid var(--ink);font-weight:600;vertical-align:bottom}
tbody tr+tr>*{border-top:1px solid var(--grid)}
.num{text-align:right}
.none{color:var(--soft)}
.arms th small,.arms td small{display:block;overflow-wrap:anywhere}
.arms thead th,.arms tbody td{width:22%}
.arms td b{font-weight:650}
.arms .group th{padding-top:22px;font-size:13px;color:var(--soft);border-bottom:1px solid var(--rule)}
.arms tbody:first-of-type .group th{padding-top:14px}
.classes td,.classes th{vertical-align:middle;padding-block:5px}
.classes .wide{width:44%;padding-inline:14px 20px}
.classes th[scope=row]{overflow-wrap:anywhere}
.standings{font-size:14px}
.standings td,.standings th{vertical-align:middle;padding:5px 9px 5px 0;white-space:nowrap}
.standings .wide{width:22%;min-width:110px;padding-inline:4px 12px}
.plain th[scope=row]{font-weight:600}
.plain+h3,.scroll+h3{margin:34px 0 6px}
.plain td small{white-space:nowrap}
.part{margin:38px 0 18px}
.scroll{overflow-x:auto}
.scroll+.pair{margin-top:34px}
.scroll table{min-width:560px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:22px}
.card{background:var(--panel);border-radius:10px;padding:16px 18px 12px;min-width:0}
.card header{display:flex;gap:14px;align-items:center;margin-bottom:6px}
.card header h3{margin:0;font-size:16px}
.card header p{margin:0;font-size:13.5px;color:var(--soft)}
.card img{image-rendering:pixelated;object-fit:contain;border-radius:5px;background:var(--grid);flex:none}
.card blockquote{margin:4px 0 8px;padding-left:12px;border-left:3px solid var(--rule);font-size:14.5px}
.card table{table-layout:fixed;font-size:13px}
.card th,.card td{padding:6px 12px 5px 0;border-color:var(--rule)!important}
.card thead>tr>*{border:0;color:var(--soft);font-weight:400;padding-bottom:0}
.card tr>:first-child{width:88px;white-space:nowrap}
.card tr>:last-child{padding-right:0}
.guess{position:relative;display:flex;justify-content:space-between;gap:6px;line-height:1.3;padding-bottom:7px}
.guess span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.guess b{font-weight:400;color:var(--soft);flex:none}
.guess.true span{font-weight:650;text-decoration:underline 1px;text-underline-offset:2px}
.guess i{position:absolute;left:0;bottom:2px;height:3px;border-radius:2px;background:var(--arm);
min-width:1px}
.lines{display:flex;flex-wrap:wrap;gap:4px 22px;margin:14px 0 0;font-size:13.5px;color:var(--soft)}
.lines span{display:flex;align-items:center;gap:8px}
.lines svg{width:34px}
.scroll .field{min-width:0;width:auto;font-size:12px}
.field th,.field td{position:relative;padding:3px 5px;min-width:14px;text-align:center;border:0!important}
.field th{color:var(--soft)}
.field i{position:absolute;inset:1px;background:var(--arm);z-index:-1;border-radius:2px}
.field td{isolation:isolate}
.field .best{outline:1.5px solid var(--arm);outline-offset:-1px}
.meter{display:block;height:5px;margin-top:6px;border-radius:3px;background:var(--grid);min-width:90px}
.meter i{display:block;height:100%;border-radius:3px;background:var(--student)}
.lost{color:var(--down)}
h4{font-size:14px;font-weight:400;margin:0 0 8px}
.thumbs{display:flex;flex-wrap:wrap;gap:12px 14px;margin:0 0 22px}
.thumbs figure{width:76px}
.thumbs img{display:block;image-rendering:pixelated;object-fit:contain;border-radius:5px;
background:var(--grid)}
.thumbs figcaption{font-size:12.5px;line-height:1.3;margin-top:4px;overflow-wrap:anywhere}
.thumbs .wrong figcaption{color:var(--down)}
.panes{display:grid;grid-template-columns:repeat(var(--columns),minmax(120px,1fr));gap:10px 12px}
.view{overflow:hidden;border-radius:5px;background:var(--grid);cursor:crosshair}
.view img{display:block;width:100%;transform:scale(var(--zoom,1));transform-origin:var(--x,50%) var(--y,50%)}
.zoomed .view img{image-rendering:pixelated}
.panes figcaption,.scale{font-size:12.5px;color:var(--soft);margin:5px 0 0}
.panes .scale{grid-column:1/span 2;grid-row:2}
.scale i{display:block;max-width:180px;height:8px;border-radius:2px;margin-bottom:5px;
background:linear-gradient(90deg,#0a0814,#54185c,#c43e3c,#f89e32,#fff6c4)}
.zoom{display:flex;gap:12px;align-items:center;font-size:14px;margin-top:26px}
.zoom input{accent-color:var(--student);width:min(260px,60%)}
.measures small{display:block}
.measures .wide{width:34%}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:14px;
margin:0 0 30px}
.panels figcaption,.triple figcaption{font-size:13px;line-height:1.4;margin-top:5px}
td .below{display:block;white-space:normal!important}
.stretch{white-space:nowrap}
.lines+h4{margin-top:26px}
.triple code{overflow-wrap:anywhere}
.sheet{margin:0 0 16px}
.sheet figcaption{font-size:13.5px;margin:0 0 5px}
.sheet img{image-rendering:pixelated}
img.wide{display:block;width:100%;height:auto;border-radius:4px}
svg.scene{overflow:hidden;border-radius:4px}
svg .box{fill:none;stroke:var(--box);stroke-width:1.8;vector-effect:non-scaling-stroke;
filter:drop-shadow(0 0 .7px #000)}
svg .box.gained{stroke-width:3.5;fill:var(--box);fill-opacity:.28;filter:none}
svg .box.missed{stroke:#fff;stroke-width:1.5;stroke-dasharray:4 3}
svg .box.wrong{stroke:#ff1f1f;stroke-width:1.5}
.shares{display:flex;height:12px;min-width:160px;border-radius:3px;overflow:hidden}
.shares i{display:block;height:100%;border-right:1px solid var(--paper)}
.shares .front{background:var(--student)}
.shares .back{background:var(--control);opacity:.55}
.copyable{margin-bottom:22px}
.copyable .bar{display:flex;justify-content:space-between;align-items:center;margin-bottom:8px}
.copyable .bar h3{margin:0}
pre{margin:0;background:var(--panel);border-radius:8px;padding:16px 18px;overflow:auto;max-height:460px;
line-height:1.5;font-size:13px}
footer{padding-block:22px 48px;border-top:1px solid var(--rule);color:var(--soft);font-size:13.5px}
@media(max-width:860px){
section{grid-template-columns:minmax(0,1fr);padding:28px 0 36px}
section h2{position:static;font-size:19px}
.hero{padding:22px 0 30px}
}
@media(max-width:520px){
body{font-size:15.5px}
.facts{display:grid;grid-template-columns:1fr 1fr;gap:18px 14px}
.facts dd{font-size:23px}
table{font-size:13.5px}
th,td{padding-right:9px}
.arms thead th,.arms tbody td{width:auto}
.arms .key{display:block;margin-bottom:5px}
.classes .wide{padding-inline:4px 8px;width:30%}
.card{padding:14px 14px 8px}
.card tr>:first-child{width:76px;font-size:12.5px}
.card .key{margin-right:5px;width:9px;height:9px}
.classes .before{display:none}
svg text{font-size:13.5px}
svg .name{font-size:14px}
}
@media print{.top button,.copyable button{display:none}section{break-inside:avoid}pre{max-height:none}}
"""
)

SCRIPT = """
(function(){
var root=document.documentElement,button=document.getElementById('theme');
function dark(){var chosen=root.dataset.theme;
return chosen?chosen==='dark':matchMedia('(prefers-color-scheme: dark)').matches}
function label(){button.textContent=dark()?'Light':'Dark'}
button.hidden=false;label();
button.onclick=function(){root.dataset.theme=dark()?'light':'dark';label()};
var zoom=document.getElementById('zoom'),shown=document.getElementById('pictures');
if(zoom)zoom.oninput=function(){shown.style.setProperty('--zoom',zoom.value);
shown.classList.toggle('zoomed',zoom.value>1)};
document.querySelectorAll('.panes').forEach(function(row){row.onpointermove=function(event){
var view=event.target.closest('.view');if(!view)return;var box=view.getBoundingClientRect();
row.style.setProperty('--x',100*(event.clientX-box.left)/box.width+'%');
row.style.setProperty('--y',100*(event.clientY-box.top)/box.height+'%')}});
document.querySelectorAll('[data-copy]').forEach(function(one){one.onclick=function(){
var text=document.getElementById(one.dataset.copy),range=document.createRange(),selection=getSelection();
range.selectNodeContents(text);selection.removeAllRanges();selection.addRange(range);
var done=false;try{done=document.execCommand('copy')}catch(error){done=false}
one.textContent=done?'Copied':'Selected';setTimeout(function(){one.textContent='Copy'},1500)}});
})();
"""
