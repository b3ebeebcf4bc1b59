"""The checkpoints of projections."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("eventlogs", "0003_fence_of_the_feed"),
    ]

    operations = [
        migrations.CreateModel(
            name="Checkpoint",
            fields=[
                (
                    "projection",
                    models.CharField(
                        editable=False, max_length=100, primary_key=True, serialize=False
                    ),
                ),
                ("position", models.BigIntegerField(default=0, editable=False)),
            ],
        ),
    ]
