"""What a network costs to run."""

from deskpro.stages.models.student import multiply_adds as multiply_adds
