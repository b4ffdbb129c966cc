# MyPyPi in a container: MYPYPI_MODE chooses the daemon, server or worker. It listens on port 80 and keeps its data in
# /data; Redis is another container's business (docker-compose.yml has all of them).
#
#   docker build -t mypypi .
#   docker run --init -p 8080:80 -e MYPYPI_REDIS_URL=redis://… -v mypypi:/data mypypi

ARG PYTHON=3.13-slim

FROM python:${PYTHON} AS build
WORKDIR /src
# Only what .dockerignore lets through: the sources, and no file with somebody's settings.
COPY . .
# The last step writes Twisted's plugin cache, which nobody can write later on. A second after the install, since a
# layer keeps whole seconds and a cache that is not newer than its plugins is made again at every start.
RUN python -m venv /opt/mypypi \
 && /opt/mypypi/bin/pip install --no-cache-dir --disable-pip-version-check . \
 && sleep 1 \
 && /opt/mypypi/bin/twistd --help >/dev/null

FROM python:${PYTHON}
COPY --from=build /opt/mypypi /opt/mypypi
# An empty directory and no home: what is in it here is copied into each new volume.
RUN groupadd --gid 1000 mypypi \
 && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /data --shell /usr/sbin/nologin mypypi \
 && install --directory --owner=mypypi --group=mypypi --mode=0750 /data
ENV PATH=/opt/mypypi/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MYPYPI_MODE=server \
    MYPYPI_DATA_DIRECTORY=/data
# By number, so that Kubernetes sees that it is not root. That it may listen on port 80 all the same is the engine's
# doing: net.ipv4.ip_unprivileged_port_start=0 in the container's network. Where an engine does not set it, set it, or
# MYPYPI_LISTEN=tcp:8080.
USER 1000:1000
WORKDIR /data
VOLUME /data
EXPOSE 80
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["python", "-m", "mypypi.daemon.container", "check"]
# No shell: the daemon gets the signals itself.
CMD ["python", "-m", "mypypi.daemon.container", "run"]
