# The HTTP service. The run directory is mounted, not copied:
#   docker build -t captioning .
#   docker run --rm -p 5000:5000 --read-only --tmpfs /tmp -v "$PWD/runs/demo:/run:ro" captioning
# --build-arg TORCH_INDEX=... takes PyTorch from another index: its own of builds for processors alone makes the image gigabytes smaller.
# With a GPU: start it with `docker run --gpus all`.
FROM python:3.12-slim

ARG TORCH_INDEX=
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# First what is large and seldom changes.
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.10" torchvision

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY captioning captioning
RUN pip install ".[serve]"

# Nobody in particular, and nothing of the image is theirs to write.
RUN useradd --system --no-create-home --uid 10001 captioning
USER captioning
WORKDIR /

EXPOSE 5000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/healthz', timeout=4)"]

# The program itself is process 1, so SIGTERM (`docker stop`) reaches it.
ENTRYPOINT ["captioning", "serve"]
CMD ["--run", "/run", "--host", "0.0.0.0", "--port", "5000"]
