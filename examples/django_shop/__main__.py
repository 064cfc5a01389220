"""Two orders, one of them rolled back."""

# ruff: noqa: PLC0415 (as in a worker, the settings must be known before the models are imported)

import os

from examples.stage import stage_for_threads, worker_thread

os.environ["DJANGO_SETTINGS_MODULE"] = "examples.django_shop.settings"


def main() -> None:
    from django.db import connection
    from django.test import Client

    import zart.sync
    from examples.django_shop.durables import fulfil, registry
    from examples.django_shop.models import Order

    with connection.schema_editor() as editor:
        editor.create_model(Order)

    http = Client()
    with worker_thread(registry), zart.sync.Client() as client:
        print("an order with an expired card")
        answer = http.post("/orders/4711", {"item": "kettle", "card": "expired"})
        print(f"POST /orders/4711: {answer.status_code} {answer.json()}")
        print(f"stored: {list(Order.objects.values())}")
        try:
            client.status("order-4711")
        except zart.ExecutionNotFound:
            print("started: nothing")

        print("the same order with a valid one")
        answer = http.post("/orders/4711", {"item": "kettle", "card": "valid"})
        result = client.handle(fulfil, "order-4711").result(timeout="30s")
        print(f"POST /orders/4711: {answer.status_code} {answer.json()}")
        print(f"stored: {list(Order.objects.values())}")
        print(f"the result: {result}")
    connection.close()


if __name__ == "__main__":
    with stage_for_threads():
        main()
