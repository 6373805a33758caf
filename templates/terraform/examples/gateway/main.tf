# This example is the public half of a deployment: a load balancer with HTTPS in front of an HTTP service that uses NATS.
# The service reads the connection document, which the nodes keep (../complete with its outputs, or ../..).

provider "aws" {
  region = var.region
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

# The execution role reads the document for the container, and the service's security group reaches the nodes.
module "nats" {
  source = "../../modules/client"

  role_name                 = aws_iam_role.execution.name
  connection_secret_arn     = var.connection_secret_arn
  connection_secret_key_arn = var.connection_secret_key_arn
  client_security_group_id  = aws_security_group.service.id
  server_security_group_ids = var.server_security_group_ids
}

output "url" {
  description = "The URL of the gateway. Without zone_name, a record of yours must lead domain_name to load_balancer_dns_name."
  value       = "https://${var.domain_name}"
}

output "load_balancer_dns_name" {
  description = "The load balancer's own name."
  value       = aws_lb.gateway.dns_name
}

output "service_name" {
  description = "The ECS service, in the cluster of the same name. `aws ecs update-service --force-new-deployment` makes its tasks read the document again."
  value       = aws_ecs_service.gateway.name
}

output "service_security_group_id" {
  description = "The security group of the tasks."
  value       = aws_security_group.service.id
}
