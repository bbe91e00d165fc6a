"""Flower wants a ClientApp in every bundle. This one does nothing: participants run the one installed with their agent."""

from flwr.clientapp import ClientApp

app = ClientApp()
