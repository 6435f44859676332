# The service in a container. Build: docker build -t aigateway .
# Its file is /etc/aigateway/aigateway.toml; mount the directory, so that a change is seen.

FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY requirements/dev.txt requirements/
COPY aigateway aigateway
# The versions that are tested, without their hashes: those of extras are not all in one file.
RUN sed -n 's/^\([a-z0-9][^ ]*==[^ ]*\( ;[^\\]*\)\{0,1\}\).*/\1/p' requirements/dev.txt > constraints.txt \
    && pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m venv /opt/aigateway \
    && /opt/aigateway/bin/pip install --no-cache-dir --constraint constraints.txt \
        "$(ls /wheels/aigateway-*.whl)[server,otel]"

FROM python:3.13-slim
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin aigateway \
    && mkdir /etc/aigateway
COPY --from=build /opt/aigateway /opt/aigateway
# In a container 127.0.0.1 is reached by nobody; any other address needs keys, and says so.
ENV PATH=/opt/aigateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AIGATEWAY_SERVER_HOST=0.0.0.0 \
    AIGATEWAY_SERVER_PORT=8080
WORKDIR /etc/aigateway
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# Longer than it takes to load litellm on a small machine.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['AIGATEWAY_SERVER_PORT']}/health\", timeout=2)"]
ENTRYPOINT ["aigateway", "serve"]
CMD ["--log-format", "json"]
