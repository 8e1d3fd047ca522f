"""`/v2/repository/aliases`: which version, or versions by weight, a name stands for."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from msf_scheduler.aliases import InvalidAlias, UnknownAlias
from msf_scheduler.error_codes import ErrorCode
from msf_server.dependencies import AliasesDep, CatalogDep
from msf_server.errors import InvalidRequest
from msf_server.middleware.auth import bearer_auth
from msf_server.oip.body_schemas import body_of
from msf_server.oip.schemas import OIP_ERRORS, AliasRequest
from msf_server.schemas.body import parse_json

router = APIRouter(
    prefix="/v2/repository/aliases", tags=["open inference protocol"], responses=OIP_ERRORS, dependencies=[bearer_auth]
)

Alias = Annotated[str, Path(description='A model, such as "emoji", or model and tag, such as "emoji:stable".')]


@router.put(
    "/{alias}",
    operation_id="setAlias",
    summary="Set an alias",
    response_class=Response,
    openapi_extra=body_of(AliasRequest, required=True),
)
async def put(alias: Alias, request: Request, aliases: AliasesDep, catalog: CatalogDep) -> Response:
    """Give each version its share of the requests to `alias`; all servers follow within about a second.

    An alias that is refused changes nothing. A version that is unloaded later leaves its share to the others.
    """
    weights = AliasRequest.model_validate(parse_json(await request.body())).versions
    try:
        await aliases.set(alias, weights)
    except InvalidAlias as error:
        raise _refusal(error) from error
    catalog.forget()
    return Response()


@router.delete("/{alias}", operation_id="deleteAlias", summary="Delete an alias", response_class=Response)
async def delete(alias: Alias, aliases: AliasesDep, catalog: CatalogDep) -> Response:
    """Stop serving under `alias`; a model's own name stands for its newest version again."""
    try:
        await aliases.delete(alias)
    except InvalidAlias as error:
        raise _refusal(error) from error
    catalog.forget()
    return Response()


def _refusal(error: InvalidAlias) -> InvalidRequest:
    code = ErrorCode.MODEL_NOT_FOUND if isinstance(error, UnknownAlias) else None
    return InvalidRequest(str(error), param=error.param, code=code)
