"""A local page over the lineage: which samples were chosen, and why (`novelsum explore`).

Streamlit puts this folder first on the module path of the page's process: name no module here as a library is named.
"""

RUN_VARIABLE = "NOVELSUM_EXPLORE_RUN"
"""Environment variable that names the run shown at first; without it, the newest."""
