"""What pages take from addresses, with bounds: a number that no column can hold is refused here, not by the database."""

from typing import Annotated

from fastapi import Path, Query

_MOST = 2**62

Text = Annotated[str, Query(max_length=100)]
Before = Annotated[int, Query(ge=0, le=_MOST)]  # list what is older than this row
RowId = Annotated[int, Path(ge=1, le=_MOST)]
