# docker build -t deep-compression .
# docker run --rm -v "$PWD/saves:/app/saves" -v "$PWD/encodings:/app/encodings" deep-compression
FROM python:3.12-slim

# Where torch and torchvision come from.  The CPU wheels are a tenth of the size; for a GPU:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 ...
# and with an empty value pip's own default index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# requirements-dev.txt for an image that can run the tests.
ARG REQUIREMENTS=requirements.txt

WORKDIR /app

# The dependencies before the code: they change less often, and this layer is the slow one.
COPY requirements.txt requirements-dev.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision \
    && pip install --no-cache-dir -r "$REQUIREMENTS"

COPY . .

# All but the last would otherwise look for a home, or for a folder, that `--user` cannot write.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor NUMBA_CACHE_DIR=/var/cache/numba \
    NUMBA_CPU_NAME=generic

# Not root.  The folders are world-writable, since a volume's owner is only known when it is
# mounted: `--user "$(id -u):$(id -g)"` then works with a folder of the host's.
RUN useradd --create-home app \
    && mkdir -p saves encodings data "$NUMBA_CACHE_DIR" \
    && chown app saves encodings data "$NUMBA_CACHE_DIR" \
    && chmod 777 saves encodings data "$NUMBA_CACHE_DIR"
USER app

# The loops, compiled for any processor of this kind, wherever the image was built: one model there and
# back.  Who comes as another user may add to them.
RUN python -c "import torch; torch.save({ \
        f'{kind}.{part}.weight': (torch.randn(600, 600) * (torch.rand(600, 600) < part)).to(kind) \
        for kind in (torch.float32, torch.float16, torch.bfloat16) for part in (0.1, 1) \
    } | {'norm': torch.randn(600), 'ids': torch.arange(600)}, '/tmp/warm.pth')" \
    && python -m net compress /tmp/warm.pth -o /tmp/warm.dc \
    && python -m net decompress /tmp/warm.dc -o /tmp/warm.safetensors \
    && rm /tmp/warm.* && chmod -R a+rwX "$NUMBA_CACHE_DIR"

# `docker run IMAGE weight_share.py --help` runs another script, `docker run IMAGE -m net` the commands.
ENTRYPOINT ["python"]
CMD ["deep_compressing.py"]
