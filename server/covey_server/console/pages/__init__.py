"""The pages: thin edges that read one view model and render one template."""
