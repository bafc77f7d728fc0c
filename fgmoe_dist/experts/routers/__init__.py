"""Who chooses a token's experts: what `experts.router` can name. A new one is a file here and a line in `ROUTERS`."""

from __future__ import annotations

from fgmoe_dist.experts.routers.base import Router, Routing
from fgmoe_dist.experts.routers.expert import ExpertRouter
from fgmoe_dist.experts.routers.image import ImageRouter
from fgmoe_dist.experts.routers.token import TokenRouter

__all__ = ["ROUTERS", "Router", "Routing"]

ROUTERS: dict[str, type[Router]] = {"token": TokenRouter, "image": ImageRouter, "expert": ExpertRouter}
