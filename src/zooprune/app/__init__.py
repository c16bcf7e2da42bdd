"""The page of `zooprune app`.

`workbench` does the work. It, `pictures`, `settings`, `fragments` and `record` know nothing of a browser. Only `page`
and `serving` need Gradio.
"""

from __future__ import annotations

from importlib.util import find_spec


def check_gradio() -> None:
    """Raise an ImportError that says what to install if Gradio is missing."""
    if find_spec("gradio") is None:
        raise ImportError("zooprune app needs Gradio; run: pip install 'zooprune[app]'")
