"""A Django project that starts executions within `transaction.atomic`: `make example-django_shop`."""
