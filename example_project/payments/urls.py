"""The URLs of the payments API."""

from __future__ import annotations

from django.urls import path

from example_project.payments import views

app_name = "payments"

urlpatterns = [
    path("", views.Payments.as_view(), name="create"),
    path("totals/", views.Totals.as_view(), name="totals"),
    path("<str:payment_id>/", views.OnePayment.as_view(), name="show"),
    path("<str:payment_id>/events/", views.Events.as_view(), name="events"),
    path("<str:payment_id>/authorize/", views.Authorize.as_view(), name="authorize"),
    path("<str:payment_id>/capture/", views.Capture.as_view(), name="capture"),
    path("<str:payment_id>/refund/", views.Refund.as_view(), name="refund"),
]
