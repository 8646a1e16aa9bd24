# matrix-ssl in a container; docs/install.md has the commands.
#
#   docker build -t matrix-ssl .                                    the whole command line
#   docker build -t matrix-ssl --build-arg EXTRAS=timm,datasets .   with extras
FROM docker.io/library/python:3.11-slim

ARG EXTRAS=""
WORKDIR /opt/matrix-ssl
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src ./src
RUN pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}"

# any user may run it, with --user: caches are where everybody may write
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["matrix-ssl"]
CMD ["--help"]
