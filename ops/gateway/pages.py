"""Files that the gateway serves itself: the OpenAPI description and the documentation page."""

import json
from pathlib import Path

from ops.gateway.rpcs import DESCRIPTORS, FOLDER

# Path → file and content type.
PAGES = {
    "/openapi.json": (DESCRIPTORS.with_name("openapi.json"), "application/json"),
    "/docs": (FOLDER / "docs" / "index.html", "text/html; charset=utf-8"),
    "/docs/swagger-ui.css": (FOLDER / "docs" / "swagger-ui.css", "text/css; charset=utf-8"),
    "/docs/swagger-ui-bundle.js": (FOLDER / "docs" / "swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
    "/docs/start.js": (FOLDER / "docs" / "start.js", "text/javascript; charset=utf-8"),
}
# The page loads nothing from elsewhere, and no other page shows it in a frame.
POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"


def page_route(path: str, file: Path, content_type: str) -> str:
    """The route of a file."""
    headers = {"content-type": content_type, "x-content-type-options": "nosniff", "content-security-policy": POLICY}
    route = {
        "name": "docs",
        "match": {"path": path},
        "direct_response": {"status": 200, "body": {"filename": str(file)}},
        "response_headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in headers.items()
        ],
    }
    return f"                        - {json.dumps(route)}"
