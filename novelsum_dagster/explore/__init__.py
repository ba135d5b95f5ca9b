"""A local page over the lineage: which samples were picked, and why (`novelsum explore`).

Streamlit puts this folder first on the module path of the page's process: no module here may have a library's name.
"""

RUN_VARIABLE = "NOVELSUM_EXPLORE_RUN"
"""Environment variable that names the run shown initially; default: the newest."""
