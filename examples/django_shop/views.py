"""What the shop answers."""

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path

import zart.sync
from examples.django_shop.durables import fulfil
from examples.django_shop.models import Order


class Declined(Exception):  # noqa: N818
    """The card is."""


def place(request: HttpRequest, number: int) -> JsonResponse:
    try:
        with transaction.atomic():
            Order.objects.create(number=number, item=request.POST["item"])
            execution = zart.sync.start(fulfil, number, id=f"order-{number}", connection=connection)
            if request.POST["card"] != "valid":
                raise Declined
    except Declined:
        return JsonResponse({"error": "the card is declined"}, status=402)
    return JsonResponse({"execution": execution}, status=201)


urlpatterns = [path("orders/<int:number>", place)]
