"""Flower's ServerApp for Covey: it only calls the installed server."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from covey_server.federation.serverapp import drive

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]  # flwr publishes no types
def main(grid: Grid, context: Context) -> None:
    """Drive one run."""
    drive(grid, context)
