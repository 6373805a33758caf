# ECS reads one key of a secret by ARN:KEY:STAGE:VERSION, where an empty stage means the current version
# (https://docs.aws.amazon.com/AmazonECS/latest/developerguide/secrets-envvar-secrets-manager.html).
output "container" {
  description = "A part of an ECS container definition: the variables that a NATS client needs. Merge it into the definition: merge(module.client.container, { name = …, image = … }). ECS reads the values when a task starts."
  value = {
    secrets = [for key in local.keys : { name = key, valueFrom = "${var.connection_secret_arn}:${key}::" }]
  }

  # A task that starts before its role may read the secret fails.
  depends_on = [aws_iam_role_policy.connection]
}
