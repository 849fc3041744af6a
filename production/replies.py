"""How faults are told: in the original's shape to its clients, as problem+json to ours."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from production.strict import RequestError

#: Return codes of the KPI interfaces and their texts.
CODES = {
    0: "操作成功",
    1000: "抛出异常",
    1001: "数据库操作失败",
    1002: "参数检查失败",
    1003: "文件格式有误",
    1004: "非post请求",
    1005: "非get请求",
    2001: "特征计算出错",
    2002: "读取特征数据失败",
    2003: "训练出错",
    2004: "样本不足",
}

KPI_PATHS = frozenset(
    {
        "/PredictValue",
        "/PredictRate",
        "/SearchAnomaly",
        "/UpdateAnomaly",
        "/ImportSample",
        "/QuerySample",
        "/UpdateSample",
        "/DeleteSample",
        "/CountSample",
        "/DownloadSample",
        "/DownloadSample/",
        "/QueryTrainSource",
        "/Train",
        "/QueryTrain",
        "/DeleteTrain",
    }
)
HTM_PATH = "/api/HTM/v1.0/"

_TITLES = {
    400: "The request is malformed",
    401: "A token is needed",
    403: "This is not allowed",
    404: "There is nothing of this name",
    405: "The method does not apply here",
    408: "The request took too long",
    409: "The request contradicts the present state",
    413: "The request is too large",
    415: "The type of the body is not understood",
    422: "A field is not as it must be",
    429: "A limit is reached",
    500: "The service failed",
    503: "The service cannot do this now",
}


def kpi_reply(code: int, data: Any = None, detail: str = "", status: int = 200) -> Response:
    """An answer of the KPI interfaces.

    Examples
    --------
    >>> from production.replies import kpi_reply
    >>> kpi_reply(0, {"ret": 0, "p": "0.05"}).body.decode()
    '{"code":0,"msg":"操作成功","data":{"ret":0,"p":"0.05"}}'
    """
    message = CODES[code] if not detail else f"{CODES[code]}: {detail}"
    return json_reply({"code": code, "msg": message, "data": data}, status)


def json_reply(value: Any, status: int = 200, media_type: str = "application/json") -> Response:
    """Compact JSON, its texts as they are."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Response(text.encode("utf-8", "replace"), status, media_type=media_type)


def fault_reply(path: str, fault: RequestError) -> Response:
    """A fault in the shape that clients of this path know."""
    if path in KPI_PATHS:
        reply = kpi_reply(_code_of(fault), None, fault.detail, fault.status)
    elif path.startswith(HTM_PATH):
        reply = json_reply({"message": fault.detail}, fault.status)
    else:
        problem = {
            "type": f"urn:anomaly:problem:{fault.kind}",
            "title": _TITLES.get(fault.status, "The request cannot be taken"),
            "status": fault.status,
            "detail": fault.detail,
        }
        reply = json_reply(problem, fault.status, "application/problem+json")
    if fault.retry_after_s is not None:
        reply.headers["Retry-After"] = str(fault.retry_after_s)
    if fault.status == 401:
        reply.headers["WWW-Authenticate"] = 'Basic realm="anomaly", charset="UTF-8"'
    return reply


def _code_of(fault: RequestError) -> int:
    named = {"not_post": 1004, "not_get": 1005, "database": 1001, "file": 1003}
    return named.get(fault.kind, 1000 if fault.status >= 500 else 1002)
