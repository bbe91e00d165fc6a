"""Every table of the server in one import, for migrations and tests. Importing this fills SQLModel.metadata."""

from sqlmodel import SQLModel

from covey_server import outbox
from covey_server.access import models as access
from covey_server.audit import models as audit
from covey_server.devices import models as devices
from covey_server.federation import models as federation
from covey_server.observability import models as observability
from covey_server.privacy import models as privacy
from covey_server.releases import models as releases
from covey_server.rollouts import models as rollouts
from covey_server.telemetry import models as telemetry
from covey_server.triggers import models as triggers

CAPABILITIES = (outbox, access, audit, devices, federation, observability, privacy, releases, rollouts, telemetry, triggers)
metadata = SQLModel.metadata
