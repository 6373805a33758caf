# This example makes a cluster of three nodes on Amazon Linux 2023, with its own network. Terraform uploads the two
# packages from this machine.

# The module says which versions of Terraform and of the provider it needs.
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
  # Services read this document to connect (../gateway).
  connection_document = true
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

output "connection_secret_arn" {
  description = "The secret of the connection document."
  value       = module.nats.connection_secret_arn
}

output "connection_secret_key_arn" {
  description = "The KMS key of the connection document."
  value       = module.nats.secrets_key_arn
}

output "server_security_group_ids" {
  description = "The security groups that services connect to."
  value       = [module.nats.node_security_group_id, module.nats.clients_security_group_id]
}

output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "public_subnet_ids" {
  description = "The public subnets, one for each Availability Zone."
  value       = aws_subnet.public[*].id
}

output "private_subnet_ids" {
  description = "The private subnets, one for each Availability Zone."
  value       = aws_subnet.private[*].id
}

output "ca_arn" {
  description = "The private CA, which `terraform destroy` doesn't delete."
  value       = module.nats.ca_arn
}

output "autoscaling_group_name" {
  description = "The Auto Scaling group."
  value       = module.nats.autoscaling_group_name
}
