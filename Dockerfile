# The web app in a container, from the repository's root:
#
#   docker build --target cuda -t hyperbrush .     with an NVIDIA GPU (and its container toolkit on the host)
#   docker build -t hyperbrush .                   without
#   docker run --rm -p 127.0.0.1:7870:7870 -v hyperbrush:/workspace hyperbrush      # and --gpus all
#
# The address with its token is printed.  Any other command: docker run --rm -v hyperbrush:/workspace hyperbrush demo
# Linux wheels of torch on PyPI carry CUDA, some gigabytes; for a small image without, name the index of its CPU wheels:
# --build-arg PIP_EXTRA_INDEX_URL=… --build-arg TORCH=2.13.0+cpu
FROM python:3.11-slim AS build
WORKDIR /source
COPY . .
RUN python -m pip install --no-cache-dir build==1.6.1 \
    && python -m build --wheel --outdir /dist

FROM python:3.11-slim AS app
ARG PIP_EXTRA_INDEX_URL=
ARG TORCH=2.13.0
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 1000 painter \
    && install -d -o painter -g painter /workspace
RUN python -m pip install "torch==$TORCH"
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /dist/*.whl /tmp/
RUN grep -v "^torch==" /tmp/constraints.txt > /tmp/others.txt \
    && python -m pip install -c /tmp/others.txt "hyperbrush[app,optimizers,pictures,parquet] @ file://$(ls /tmp/hyperbrush-*.whl)" \
    && rm /tmp/*.whl /tmp/*.txt
USER 1000
WORKDIR /workspace
VOLUME /workspace
EXPOSE 7870
# Any answer will do, 401 for the missing token too.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 7870, timeout=4); c.request('GET', '/'); raise SystemExit(c.getresponse().status >= 500)"]
ENTRYPOINT ["hyperbrush"]
CMD ["serve", "--no-open", "--host", "0.0.0.0"]

FROM app AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM app AS cpu
