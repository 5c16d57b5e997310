"""What the documentation asks of Sphinx beyond its own extensions."""

from typing import Any

from docutils.nodes import Node, reference
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.doctest import DocTestBuilder


class PageTests(DocTestBuilder):
    """Run the examples of the pages, and not again those of docstrings, which pytest runs in their modules."""

    def test_doc(self, docname: str, doctree: Node) -> bool:
        """Test a page."""
        return True if docname.startswith(("api/", "examples/")) else super().test_doc(docname, doctree)


def find_public(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Node) -> reference | None:
    """Find what a docstring names by its own module under the public name that the API documents."""
    if node.get("refdomain") != "py":
        return None
    parts = node["reftarget"].split(".")
    if "." in node["reftarget"] and parts[0] != "kornia_mvit" and not parts[0][0].isupper():
        return None
    public = node.copy()
    public["refspecific"] = True
    name = ".".join(parts[-2:] if node["reftype"] in ("meth", "attr") else parts[-1:])
    if not env.domains.python_domain.find_obj(env, None, None, name, node["reftype"], 1):
        return None
    return env.domains.python_domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], name, public, contnode
    )


def shorten_defaults(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str) -> Any:
    """Write a default that a function makes as Python can read it; Sphinx gives up on ``<factory>``."""
    return (signature.replace("<factory>", "..."), returns) if signature else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the builder and the hooks."""
    app.add_builder(PageTests, override=True)
    app.connect("missing-reference", find_public)
    app.connect("autodoc-process-signature", shorten_defaults)
    return {"parallel_read_safe": True}
