"""The page's style sheet: light and dark after the reader's system, and plain on paper."""

_LIGHT = """
  --page: #f9f9f7; --surface: #fcfcfb; --ink: #0b0b0b; --soft: #52514e; --faint: #898781; --grid: #e1e0d9;
  --axis: #c3c2b7; --series: #2a78d6; --clipped: #eb6834; --good: #006300; --bad: #b42222; --bad-wash: #fbe9e9;
  --note-wash: #fdf3dc;
"""
_DARK = """
  --page: #0d0d0d; --surface: #1a1a19; --ink: #ffffff; --soft: #c3c2b7; --faint: #898781; --grid: #2c2c2a;
  --axis: #383835; --series: #3987e5; --clipped: #d95926; --good: #0ca30c; --bad: #ff8080; --bad-wash: #3a1717;
  --note-wash: #33290f;
"""

STYLE = (
    f":root {{ color-scheme: light dark; {_LIGHT} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}\n"
    """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 .75rem; text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
h3 { font-size: .9rem; margin: 0; font-weight: 600; overflow-wrap: anywhere; }
section { background: var(--surface); border: 1px solid var(--grid); border-radius: 8px; padding: 1rem 1.25rem;
  margin: 1rem 0; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
.soft { color: var(--soft); }
.verdict { font-weight: 700; color: var(--bad); }
.accepted .verdict { color: var(--good); }
.warning { background: var(--bad-wash); border-left: 4px solid var(--bad); color: var(--ink);
  padding: .75rem 1rem; margin: .75rem 0; border-radius: 4px; font-weight: 600; max-width: none; }
.note { background: var(--note-wash); padding: .5rem 1rem; border-radius: 4px; max-width: none; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1rem 0 0; }
.facts div { border-top: 2px solid var(--axis); padding-top: .4rem; }
.facts dt { color: var(--soft); font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.5rem; line-height: 1.3; }
.scroll { overflow-x: auto; margin: .5rem 0 .25rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; position: sticky; left: 0;
  max-width: calc(100vw - 4.5rem); }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--grid); text-align: left;
  vertical-align: top; }
th { font-weight: 600; }
tbody th { font-weight: 400; overflow-wrap: anywhere; min-width: 8rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.number + .text { padding-left: .75rem; }
td.number { white-space: nowrap; }
details { margin-top: .5rem; }
summary { cursor: pointer; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.25rem 1.5rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .85rem; color: var(--soft); }
.wide svg { min-width: 36rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, -apple-system, "Segoe UI", sans-serif; }
svg text.value, svg text.name { fill: var(--ink); }
svg .bar { fill: var(--series); }
svg .clipped { fill: var(--clipped); }
svg .grid { stroke: var(--grid); }
svg .axis { stroke: var(--axis); }
svg .threshold { stroke: var(--ink); stroke-dasharray: 4 3; }
svg g:hover .bar, svg g:hover .clipped { opacity: .75; }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 2px; background: var(--series); }
.swatch.beyond { background: var(--clipped); }
@media (max-width: 40rem) {
  section { padding: .75rem 1rem; }
  tbody th { min-width: 5rem; }
  .text { min-width: 6rem; }
  .wide svg { min-width: 27rem; }
}
@media print {
"""
    f"  :root {{ color-scheme: light; {_LIGHT} --page: #ffffff; --surface: #ffffff; }}\n"
    """
  main { max-width: none; padding: 0; }
  section { border: 0; padding: 0; }
  tr, figure, .warning { break-inside: avoid; }
  h2 { break-after: avoid; }
  .scroll { overflow: visible; }
  caption { max-width: none; }
  .wide svg { min-width: 0; }
  details::details-content { content-visibility: visible; block-size: auto; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
)
