"""Colours, and the few rules of style that views need: tints are translucent, so that they do in light and dark."""

from __future__ import annotations

__all__ = ["MAX_UPLOAD_MB", "OPTIONS", "STYLE"]

MAX_UPLOAD_MB = 50
"""What the browser may send in one file; larger ones are ingested from a folder, with `rag ingest`."""

OPTIONS = {
    "theme.light.primaryColor": "#0f6e84",
    "theme.light.backgroundColor": "#ffffff",
    "theme.light.secondaryBackgroundColor": "#f3f5f7",
    "theme.light.textColor": "#1d2733",
    "theme.light.linkColor": "#0b5c70",
    "theme.dark.primaryColor": "#4fb3c8",
    "theme.dark.backgroundColor": "#12171d",
    "theme.dark.secondaryBackgroundColor": "#1b222a",
    "theme.dark.textColor": "#e6ebf0",
    "theme.dark.linkColor": "#7fcbdc",
}
"""Streamlit's own theme options; which of both is used follows the browser."""

_HATCH = "repeating-linear-gradient(135deg, {0} 0 2px, transparent 2px 7px)"

STYLE = f"""<style>
[data-testid="stMainBlockContainer"] {{ padding-top: 3.25rem; max-width: 76rem; }}
.cw {{ font-size: .95rem; line-height: 1.6; overflow-wrap: anywhere; }}
.cw-text {{ white-space: pre-wrap; }}
.cw-scroll {{ max-height: 30rem; overflow-y: auto; padding: .75rem 1rem; border-radius: .5rem;
  border: 1px solid rgba(128,140,155,.35); }}
.cw mark {{ color: inherit; background: none; border-radius: .15rem; padding: .05em 0;
  -webkit-box-decoration-break: clone; box-decoration-break: clone; }}
.cw mark.cw-cite {{ background: rgba(245,190,40,.38); border-bottom: 2px dashed currentColor; }}
.cw mark.cw-a {{ background: rgba(40,130,200,.17); }}
.cw mark.cw-b {{ background: {_HATCH.format("rgba(200,120,30,.35)")}, rgba(220,150,60,.14); }}
.cw mark.cw-edge {{ border-left: 3px solid currentColor; padding-left: .25em;
  -webkit-box-decoration-break: slice; box-decoration-break: slice; }}
.cw mark.cw-keep {{ background: rgba(40,160,100,.20); border-bottom: 2px solid rgba(30,140,90,.9); }}
.cw mark.cw-drop {{ text-decoration: line-through; text-decoration-thickness: 1.5px; opacity: .68;
  background: {_HATCH.format("rgba(200,60,60,.30)")}; }}
.cw mark.cw-guard {{ outline: 1.5px solid currentColor; outline-offset: -1px; border-radius: .2rem; }}
.cw mark.cw-doubt {{ text-decoration: underline wavy #d0453e 1.5px; text-underline-offset: .2em; }}
.cw a.cw-ref {{ color: inherit; font-size: .8em; font-weight: 600; vertical-align: .2em; text-decoration: none;
  padding: 0 .3em; margin-left: .1em; border-radius: .3em; border: 1px solid currentColor; line-height: 1; }}
.cw a.cw-ref:hover, .cw a.cw-ref:focus-visible {{ text-decoration: underline; outline: 2px solid currentColor; }}
.cw-card {{ border: 1px solid rgba(128,140,155,.35); border-left: 4px solid rgba(128,140,155,.5); border-radius: .5rem;
  padding: .6rem .9rem; scroll-margin: 5rem; }}
.cw-card:target {{ border-color: #d99a00; box-shadow: 0 0 0 2px rgba(217,154,0,.45); }}
.cw-head {{ font-weight: 600; font-size: .9rem; margin-bottom: .3rem; }}
.cw-dim {{ opacity: .75; font-size: .85rem; }}
.cw-answer {{ font-size: 1.08rem; }}
.cw-bar {{ display: flex; height: 1.6rem; border-radius: .4rem; overflow: hidden;
  border: 1px solid rgba(128,140,155,.5); }}
.cw-bar > span {{ display: block; min-width: 2px; border-right: 1px solid rgba(128,140,155,.6); }}
.cw-fill-0 {{ background: rgba(40,130,200,.55); }}
.cw-fill-1 {{ background: {_HATCH.format("rgba(160,90,10,.7)")}, rgba(230,160,70,.45); }}
.cw-fill-2 {{ background: repeating-linear-gradient(90deg, rgba(20,110,70,.7) 0 2px, transparent 2px 6px),
  rgba(60,180,120,.4); }}
.cw-fill-3 {{ background: radial-gradient(rgba(120,60,160,.9) 25%, transparent 27%) 0 0/7px 7px,
  rgba(160,110,200,.35); }}
.cw-fill-free {{ background: transparent; flex: 1; }}
.cw-legend {{ display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .85rem; margin-top: .35rem; }}
.cw-legend i {{ display: inline-block; width: .95rem; height: .95rem; border-radius: .2rem; margin-right: .35rem;
  vertical-align: -.12rem; border: 1px solid rgba(128,140,155,.6); }}
.cw-table-box {{ overflow-x: auto; }}
.cw table {{ border-collapse: collapse; font-size: .88rem; width: 100%; }}
.cw th, .cw td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid rgba(128,140,155,.3);
  vertical-align: top; overflow-wrap: normal; }}
.cw td.cw-num, .cw th.cw-num {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
.cw tr.cw-best td {{ font-weight: 650; }}
@media (max-width: 640px) {{
  [data-testid="stMainBlockContainer"] {{ padding-left: 1rem; padding-right: 1rem; }}
  .cw-scroll {{ padding: .6rem .7rem; }}
  .cw th, .cw td {{ padding: .3rem .35rem; overflow-wrap: anywhere; min-width: 5rem; }}
  .cw th, .cw td.cw-num, .cw td.cw-fig {{ overflow-wrap: normal; min-width: 0; }}
  .cw table {{ font-size: .84rem; }}
}}
</style>"""
