"""Settings of Sphinx; `make docs` builds with them."""

import doctest
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402  # beside this file

import kornia_mvit  # noqa: E402  # as above

project = "kornia_mvit"
author = "the authors of kornia_mvit"
project_copyright = "the authors of kornia_mvit, Apache-2.0"
version = release = kornia_mvit.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "myst_nb",
    "sphinx_copybutton",
    "docs_extension",
]
exclude_patterns = ["_build", "_generated"]
nitpicky = True
# There is no intersphinx, so that a build asks nothing of the network; names of other packages stay without a link.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(torch|kornia|pytorch_lightning|torchmetrics|hypothesis|numpy|PIL|collections\.abc|pathlib|random)\..*",
    ),
    ("py:.*", r"Image\.Image|huggingface_hub\..*"),
    # what stands in signatures, and is not documented by itself
    ("py:class", r"kornia_mvit\.(training\.recipe_cli\.RecipeCLI|models\.base\.TaskModel|inference\.network\.Network)"),
    ("py:class", r"kornia_mvit\.(evaluation\.(base\.BaseEvaluation|page\.Section)|weights\.layouts\.rules\.Head)"),
    ("py:class", r"P|kornia_mvit\.(inference\.engines\.fuse\.M|augmentation\.randomness\.[PT])"),  # type variables
]

html_theme = "furo"
html_title = f"kornia_mvit {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "native"

autodoc_default_options = {"exclude-members": "extra_repr, get_extra_state, set_extra_state"}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape", ("Attributes", "params_style")]

# Notebooks are executed by `make notebooks`, and shown here as they are stored.
nb_execution_mode = "off"

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

doctest_default_flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.DONT_ACCEPT_TRUE_FOR_1
# Examples of the pages run in a folder of their own, which goes when the page is done.
doctest_global_setup = """
import os, shutil, tempfile
_home, _folder = os.getcwd(), tempfile.mkdtemp()
os.chdir(_folder)
import torch
torch.manual_seed(0)
"""
doctest_global_cleanup = """
os.chdir(_home)
shutil.rmtree(_folder)
"""

generate.write_all(HERE)
