# This example makes a cluster of three nodes on Amazon Linux 2023, with its own network. Terraform uploads the two
# packages from this machine.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0, < 7.0"
    }
  }
}

provider "aws" {
  region = var.region
}

module "nats" {
  source = "../.."

  name   = var.name
  vpc_id = aws_vpc.this.id
  # The reference to the association makes the route exist before the nodes.
  subnet_ids         = aws_route_table_association.private[*].subnet_id
  client_cidr_blocks = [aws_vpc.this.cidr_block]
  client_dns_name    = "${var.name}.internal"
  # With false, the CA is the only obstacle to `terraform destroy` (../../README.md).
  deletion_protection = false

  ami_id             = var.ami_id
  nats_server_url    = "https://${aws_s3_bucket.packages.bucket_regional_domain_name}/${aws_s3_object.packages["nats_server"].key}"
  nats_server_sha256 = filesha256(var.nats_server_package)
  agent_url          = "https://${aws_s3_bucket.packages.bucket_regional_domain_name}/${aws_s3_object.packages["agent"].key}"
  agent_sha256       = filesha256(var.agent_package)

  # This policy allows a login with `aws ssm start-session`. The agent doesn't need the policy.
  additional_policy_arns = ["arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"]
}

output "client_url" {
  description = "The URL that clients in the VPC connect to."
  value       = module.nats.client_url
}

output "ca_certificate" {
  description = "The CA certificate that clients trust, in PEM."
  value       = module.nats.ca_certificate
}

output "ca_arn" {
  description = "The private CA, which `terraform destroy` doesn't delete."
  value       = module.nats.ca_arn
}

output "autoscaling_group_name" {
  description = "The Auto Scaling group."
  value       = module.nats.autoscaling_group_name
}
