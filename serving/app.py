"Classify photos over HTTP: `uvicorn app:app`, then `curl --data-binary @photo.jpg localhost:8000/predict`."
import json

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gear_fastai import GearClassifier, PhotoError

MAX_BYTES = 20_000_000
clf = GearClassifier()      # of the model folder GEAR_FASTAI_MODEL, or else the bundled model


def error(status, text): return JSONResponse(dict(error=text), status)


async def predict(request):
    "The fields of a `Prediction`; 413 if the photo is too large, 422 if it cannot be read"
    photo = bytearray()
    async for chunk in request.stream():
        if len(photo) <= MAX_BYTES: photo += chunk      # read, but do not keep, the rest of a larger one
    if len(photo) > MAX_BYTES: return error(413, f'larger than {MAX_BYTES/1e6:.0f} MB')
    try: prediction = await run_in_threadpool(clf.predict, bytes(photo))
    except PhotoError as e: return error(422, str(e))
    return Response(json.dumps(prediction.to_dict()), media_type='application/json')


async def health(request): return JSONResponse(dict(status='ok', labels=clf.labels))

app = Starlette(routes=[Route('/predict', predict, methods=['POST']), Route('/health', health)])
