"""A Flask app, served by threads that share one client: a request for holidays waits until somebody decides.

Run it with `make example-flask_holidays`. With gunicorn, `client` is made when the module is imported, and opened by
the first request: in each worker process by itself, and shared by its threads.
"""

import time

import flask
import msgspec

import zart
import zart.sync
from examples import world
from examples.stage import stage_for_threads, worker_thread
from zart import durable, step


class Wish(msgspec.Struct):
    who: str
    days: int


Decided = zart.Event("decided", bool)


@step("ask")
async def ask(wish: Wish) -> None:
    await world.call("mail", f"may {wish.who} be away for {wish.days} days?")


@step("tell")
async def tell(who: str, answer: str) -> None:
    await world.call("mail", f"{who}, {answer}")


@durable("holiday")
async def holiday(wish: Wish) -> str:
    await ask(wish)
    try:
        answer = "enjoy it" if await zart.wait_for_event(Decided, timeout="14d") else "not this time"
    except zart.EventTimeout:
        answer = "nobody has decided: enjoy it"
    await tell(wish.who, answer)
    return answer


registry = zart.Registry(holiday)
app = flask.Flask(__name__)
client = zart.sync.Client()  # ZART_DATABASE_URL says where


@app.post("/holidays/<who>")
def wish_for(who: str) -> tuple[dict[str, str], int]:
    wish = Wish(who=who, days=int(flask.request.form["days"]))
    handle = client.start(holiday, wish, id=f"holiday-{who}", on_conflict="return")
    return {"id": handle.id}, 202 if handle.created else 409


@app.post("/holidays/<who>/decision")
def decide(who: str) -> tuple[dict[str, str], int]:
    try:
        client.offer_event(f"holiday-{who}", Decided, flask.request.form["decision"] == "yes")
    except (zart.ExecutionNotFound, zart.ExecutionFinished) as error:
        return {"error": type(error).__name__}, 404
    return {}, 202


@app.get("/holidays/<who>")
def look(who: str) -> dict[str, str]:
    return {"status": client.status(f"holiday-{who}").status}


def main() -> None:
    http = app.test_client()
    print("ann asks for ten days")
    answer = http.post("/holidays/ann", data={"days": 10})
    while http.get("/holidays/ann").json != {"status": "waiting"}:
        time.sleep(0.05)
    print(f"POST /holidays/ann: {answer.status_code} {answer.json}")

    answer = http.post("/holidays/ann", data={"days": 20})
    print(f"POST /holidays/ann, with other days: {answer.status_code} {answer.json}")
    answer = http.post("/holidays/ben/decision", data={"decision": "yes"})
    print(f"POST /holidays/ben/decision: {answer.status_code} {answer.json}")

    print("somebody decides")
    answer = http.post("/holidays/ann/decision", data={"decision": "yes"})
    result = client.handle(holiday, "holiday-ann").result(timeout="30s")
    print(f"POST /holidays/ann/decision: {answer.status_code}")
    print(f"the result: {result}")
    answer = http.post("/holidays/ann/decision", data={"decision": "no"})
    print(f"POST /holidays/ann/decision: {answer.status_code} {answer.json}")


if __name__ == "__main__":
    with stage_for_threads(), worker_thread(registry), client:
        main()
