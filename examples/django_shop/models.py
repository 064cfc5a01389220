"""What the shop stores."""

from django.db import models


class Order(models.Model):
    number = models.IntegerField(primary_key=True)
    item = models.TextField()
    parcel = models.TextField(default="")
