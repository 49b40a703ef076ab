"""What a competent user writes from the documentation of Ray Serve and of LitServe.

FastAPI reads annotations in the replica, where their names may be gone: they are no strings here.
"""

import base64
import io
import signal
import time
from pathlib import Path
from typing import Any

import litserve
import timm
import torch
from fastapi import FastAPI, Request
from PIL import Image
from torchvision import transforms

from orchestrator.bundle.bundle import open_bundle
from orchestrator.bundle.predictor import load_predictor


class Eager:
    """A timm model and torchvision's transforms, as everyone writes them."""

    def __init__(self, name: str) -> None:
        self.model = timm.create_model(name, pretrained=False, num_classes=5).eval()
        self.prepare = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def tensor(self, data: bytes) -> torch.Tensor:
        """[3, 224, 224] of an encoded image."""
        found: torch.Tensor = self.prepare(Image.open(io.BytesIO(data)).convert("RGB"))
        return found

    def probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        """[N, 5] of [N, 3, 224, 224]."""
        with torch.inference_mode():
            found: torch.Tensor = self.model(pixels).softmax(1)
        return found


def said(probabilities: torch.Tensor) -> dict[str, Any]:
    """An answer as JSON."""
    return {"label": int(probabilities.argmax()), "probabilities": probabilities.tolist()}


def ray_serve(backbone: str, port: int, *, replicas: int = 1) -> None:
    """Ray Serve: a FastAPI ingress, eager torch; of 0 replicas the first request starts one."""
    import ray
    from ray import serve

    app = FastAPI()

    @serve.deployment(ray_actor_options={"num_cpus": 1})
    @serve.ingress(app)
    class Classifier:
        def __init__(self, name: str) -> None:
            self.eager = Eager(name)

        @app.get("/healthz")
        def health(self) -> dict[str, bool]:
            return {"alive": True}

        @app.post("/predict")
        async def predict(self, request: Request) -> dict[str, Any]:
            pixels = self.eager.tensor(await request.body())
            return said(self.eager.probabilities(pixels[None])[0])

    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    scaled = Classifier.options(  # type: ignore[attr-defined]
        autoscaling_config={"min_replicas": replicas, "max_replicas": max(replicas, 1)}
    )
    serve.run(scaled.bind(backbone))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        serve.shutdown()
        ray.shutdown()


class LitEager(litserve.LitAPI):  # type: ignore[misc]
    """LitServe: eager torch, in batches."""

    def __init__(self, backbone: str, **options: Any) -> None:
        super().__init__(**options)
        self.backbone = backbone

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.eager = Eager(self.backbone)

    def decode_request(self, request: dict[str, str]) -> torch.Tensor:
        return self.eager.tensor(base64.b64decode(request["image"]))

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.eager.probabilities(x)

    def encode_response(self, output: torch.Tensor) -> dict[str, Any]:
        return said(output)


class LitOnnx(litserve.LitAPI):  # type: ignore[misc]
    """LitServe that is given our decoder and ONNX Runtime; no batches, which gain nothing here."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def setup(self, device: str) -> None:
        self.predictor = load_predictor(open_bundle(self.folder), threads=1)

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["image"])

    def predict(self, x: bytes) -> dict[str, Any]:
        (answer,) = self.predictor.predict([x])
        return dict(answer)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


def lit_serve(api: Any, port: int, *, workers: int) -> None:
    """LitServe with so many processes that compute."""
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=workers, healthcheck_path="/healthz"
    )
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
