"""The web console: server-rendered pages, htmx fragments and live events.

An app joins it by two calls:

    console.mount(app)              # its files below /static/
    app.include_router(console.router)
"""

from covey_server.console.mounting import mount, router

__all__ = ["mount", "router"]
