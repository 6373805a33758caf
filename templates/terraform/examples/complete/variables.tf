variable "region" {
  description = "The Region."
  type        = string
}

variable "availability_zones" {
  description = "Three Availability Zones of the Region."
  type        = list(string)
}

variable "name" {
  description = "The name of the cluster, and the first part of all other names."
  type        = string
  default     = "nats"
}

variable "ami_id" {
  description = "An image of Amazon Linux 2023 for x86_64: aws ssm get-parameter --name /aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64 --query Parameter.Value --output text"
  type        = string
}

variable "nats_server_package" {
  description = "The path of nats-server-v…-linux-amd64.tar.gz from https://github.com/nats-io/nats-server/releases. Check the file against the SHA256SUMS of the release first."
  type        = string
}

variable "agent_package" {
  description = "The path of nats-tls-agent-….rpm."
  type        = string
}
