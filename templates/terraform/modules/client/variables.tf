variable "role_name" {
  description = "The role that reads the connection document. For the variables of an ECS container the role is the task's execution role."
  type        = string
}

variable "connection_secret_arn" {
  description = "The secret of the connection document, by its whole ARN. ECS picks keys of a secret by its whole ARN alone."
  type        = string

  validation {
    condition     = can(regex("^arn:[a-z-]+:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[A-Za-z0-9/_+=.@-]+-[A-Za-z0-9]{6}$", var.connection_secret_arn))
    error_message = "connection_secret_arn is the whole ARN of a secret, with its last six characters."
  }
}

variable "connection_secret_key_arn" {
  description = "The KMS key of the secret, for instance the output secrets_key_arn of the nodes' module. \"\" means the key aws/secretsmanager, which needs no permission."
  type        = string
  default     = ""

  validation {
    condition     = var.connection_secret_key_arn == "" || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[a-z0-9-]+$", var.connection_secret_key_arn))
    error_message = "connection_secret_key_arn is the ARN of a key, and not of an alias."
  }
}

variable "client_security_group_id" {
  description = "The security group of the service."
  type        = string
}

variable "server_security_group_ids" {
  description = "The security groups that clients connect to: of the nodes and of the clients' load balancer. nats-server tells clients the nodes' addresses, so the load balancer's group alone is not enough."
  type        = list(string)

  validation {
    condition     = length(var.server_security_group_ids) > 0
    error_message = "server_security_group_ids names at least one security group."
  }
}

variable "port" {
  description = "The port of the nodes' client listener."
  type        = number
  default     = 4222

  validation {
    condition     = var.port >= 1 && var.port <= 65535 && floor(var.port) == var.port
    error_message = "port is a whole number from 1 to 65535."
  }
}
