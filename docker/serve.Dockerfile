# `matrix-ssl serve` in a container, with an encoder in an ONNX file and without PyTorch; docs/serve.md has the commands.
#
#   docker build -t matrix-ssl-serve -f docker/serve.Dockerfile .
FROM docker.io/library/python:3.11-slim

WORKDIR /opt/matrix-ssl
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
# all that the service imports for an ONNX file; the package itself comes without its other requirements
RUN pip install --no-cache-dir --constraint constraints.txt \
    annotated-types click fastapi numpy onnxruntime pillow psutil pydantic python-multipart rich uvicorn
COPY src ./src
RUN pip install --no-cache-dir --no-deps .

# nobody; the service writes no file but the features of --data, which MATRIX_SSL_CACHE places
USER 65534:65534
ENV HOME=/tmp
WORKDIR /work
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["matrix-ssl", "serve", "--host", "0.0.0.0"]
CMD ["encoder.onnx"]
