"""The web console: server-rendered pages, htmx fragments and live events.

An app joins it by two calls:

    console.mount(app)              # its files below /static/
    app.include_router(console.router)

and, where signals are handled, `console.end_streams(app)`.
"""

from covey_server.console.live import end_streams
from covey_server.console.mounting import mount, router

__all__ = ["end_streams", "mount", "router"]
