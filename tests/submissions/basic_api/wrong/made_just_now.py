"""Gives the time of the question as the time of the model.

fails: test_models test_models_for_the_official_client test_app_shares_nothing
"""


# %% task="models_router"
def models_router(settings: Settings) -> APIRouter:
    """The endpoints `GET /v1/models` and `GET /v1/models/{id}`."""
    router = APIRouter()
    card = ModelCard(id=settings.model, created=int(time.time()))

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[card])

    @router.get("/v1/models/{model:path}")
    async def get_model(model: str) -> ModelCard:
        require_model(model, settings)
        return card

    return router


def require_model(model: str, settings: Settings) -> None:
    if model != settings.model:
        raise APIError(404, f"The model {model!r} does not exist.", param="model", code="model_not_found")
