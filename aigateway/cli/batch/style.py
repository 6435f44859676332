"""The style sheet of the report: quiet colours, aligned figures, light or dark."""

__all__ = ["STYLE"]

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f6f4; --card: #ffffff; --line: #e3e3df; --text: #1d2024; --quiet: #666c75;
  --answers: #4a78a8; --failures: #c8553d; --cost: #5f8f6e;
  --p50: #9dbad6; --p95: #4a78a8; --p99: #2c4a6b; --good: #3c7a4f; --warn: #96650f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --card: #1d2024; --line: #31353b; --text: #e4e5e7; --quiet: #9aa1ab;
    --answers: #6f9fd0; --failures: #e07a63; --cost: #7fb592;
    --p50: #45607d; --p95: #6f9fd0; --p99: #b4d2f0; --good: #7fbf93; --warn: #d9a84e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%;
}
main { max-width: 64rem; margin: 0 auto; padding: 2rem 1rem 3rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1rem; margin: 0 0 .75rem; }
p { margin: 0 0 .25rem; }
.quiet { color: var(--quiet); }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--failures); }
.tiles {
  display: grid; gap: .75rem; margin: 1.5rem 0 .75rem; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(min(12rem, 46%), 1fr));
}
.tiles div, section {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px;
}
.tiles div { padding: .6rem .85rem; }
.tiles dt { color: var(--quiet); font-size: .8rem; }
.tiles dd { margin: 0; font-size: 1.3rem; line-height: 1.35; font-weight: 600; }
.tiles small { display: block; color: var(--quiet); font-size: .75rem; font-weight: 400; }
.cards {
  display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
}
.wide { grid-column: 1 / -1; }
.stack { display: grid; gap: .75rem; align-content: start; min-width: 0; }
section { padding: 1rem; min-width: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td {
  padding: .35rem .9rem .35rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line);
}
th { font-weight: 500; } thead th { color: var(--quiet); font-weight: 400; font-size: .8rem; }
tbody tr:last-child > * { border-bottom: 0; }
th:last-child, td:last-child { padding-right: 0; }
.n { text-align: right; white-space: nowrap; }
.providers th[scope=row] { overflow-wrap: anywhere; min-width: 9rem; }
.providers td:last-child { min-width: 13rem; }
.files th:first-child { white-space: nowrap; width: 6rem; }
.files td { overflow-wrap: anywhere; }
svg { display: block; overflow: visible; margin-bottom: .5rem; }
svg text { fill: var(--quiet); font-size: 12px; }
svg .label { fill: var(--text); }
.answers { fill: var(--answers); background: var(--answers); }
.failures { fill: var(--failures); background: var(--failures); }
.cost { fill: var(--cost); background: var(--cost); }
.p50 { fill: var(--p50); background: var(--p50); }
.p95 { fill: var(--p95); background: var(--p95); }
.p99 { fill: var(--p99); background: var(--p99); }
.axis { stroke: var(--line); } .mark { stroke: var(--text); stroke-dasharray: 2 3; }
.legend {
  display: flex; flex-wrap: wrap; gap: .15rem 1rem; list-style: none; margin: 0 0 .5rem;
  padding: 0; color: var(--quiet); font-size: .8rem;
}
.legend i {
  display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .35rem;
}
footer { color: var(--quiet); font-size: .8rem; margin-top: 1rem; }
@media print { body { background: none; } section, .tiles div { break-inside: avoid; } }
"""
