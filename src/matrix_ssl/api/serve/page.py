"""The page about the service's endpoints, without scripts or external resources, so it works without a network."""

import base64
import hashlib
import json
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem } code, pre { font-family: ui-monospace, monospace; font-size: 0.9em }
pre { overflow-x: auto; padding: 0.75rem; border: 1px solid #8886; border-radius: 0.4rem }
table { border-collapse: collapse } th, td { text-align: left; vertical-align: top; padding: 0.2rem 1rem 0.2rem 0 }
td { overflow-wrap: anywhere } form { margin: 1rem 0 }
"""
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; form-action 'self'; base-uri 'none'"
_EXAMPLES = {
    "/embed": "curl -F image=@a.jpg -F image=@b.jpg http://ADDRESS/embed\n"
              "curl --data-binary @a.jpg -H 'Accept: application/x-npy' http://ADDRESS/embed -o features.npy",
    "/search": "curl --data-binary @a.jpg 'http://ADDRESS/search?k=5'",
    "/health": "curl http://ADDRESS/health",
    "/info": "curl http://ADDRESS/info",
}  # fmt: skip


def api_page(schema: dict[str, Any], info: dict[str, Any]) -> str:
    """HTML with every endpoint of an OpenAPI schema, its parameters and responses, an example, and service facts."""
    parts = [_address(path, methods) for path, methods in schema["paths"].items()]
    facts = _table([(name, json.dumps(value)) for name, value in info.items()])
    title = f"{schema['info']['title']} {schema['info']['version']}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1><p>{escape(schema['info']['description'])} The same for programs: "
        f'<a href="openapi.json">openapi.json</a>.</p>{"".join(parts)}<h2>This service</h2>{facts}</body></html>'
    )


def _address(path: str, methods: dict[str, Any]) -> str:
    text = ""
    for method, operation in methods.items():
        text += f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{escape(operation['summary'])}.</p>"
        if parameters := operation.get("parameters"):
            text += _table([(one["name"], _parameter(one)) for one in parameters])
        if "requestBody" in operation:
            text += f"<p>Body: {escape(operation['requestBody']['description'])}</p>"
        text += _table([(code, one["description"]) for code, one in operation["responses"].items()])
        text += f"<pre>{escape(_EXAMPLES.get(path, ''))}</pre>"
        if "requestBody" in operation:
            text += (
                f'<form method="post" action="{escape(path.lstrip("/"))}" enctype="multipart/form-data"><label>Try it: '
                '<input type="file" name="image" accept="image/*" multiple required></label> '
                "<button>Send</button></form>"
            )
    return text


def _parameter(one: dict[str, Any]) -> str:
    default = one["schema"].get("default")
    return one.get("description", "") + ("" if default is None else f" Default: {default}.")


def _table(rows: list[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows)
    return f"<table><tbody>{body}</tbody></table>"
