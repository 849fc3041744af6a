FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
COPY . /src
RUN python -m venv /opt/anomaly && /opt/anomaly/bin/pip install --no-cache-dir '/src[service,postgres,mysql]'

FROM python:3.12-slim
COPY --from=build /opt/anomaly /opt/anomaly
RUN useradd --system --home-dir /data anomaly && mkdir /data && chown anomaly /data
USER anomaly
WORKDIR /data
VOLUME /data
EXPOSE 5000
HEALTHCHECK CMD ["/opt/anomaly/bin/python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:5000/readyz')"]
CMD ["/opt/anomaly/bin/python", "-m", "production.service", "--host", "0.0.0.0"]
