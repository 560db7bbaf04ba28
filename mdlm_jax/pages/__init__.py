"""What a person looks at: pages, pictures, and tables on a terminal.

| module | what it holds |
|---|---|
| `report` | the page of one run, `report.html` |
| `comparison` | the page that compares runs |
| `animation` | a player that shows how samples were written, for both pages or alone |
| `template` | the jinja2 templates in `templates/`, and how quantities are written in them |
| `runs` | what a run left in its folder: the material of all pages |
| `plots` | the drawings of the pages, as SVG |
| `curves_plot` | a picture of several models' curves over mask rates |
| `frontier_plot` | a picture of a frontier |
| `frontier_table` | a frontier on a terminal |
| `answers_table` | answers on a terminal |
| `likelihood_table` | a likelihood on a terminal |
| `ab_table` | two versions on a terminal |
| `ab_plot` | a picture of two versions |
| `watch` | samples replayed on a terminal |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
