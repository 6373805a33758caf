variable "region" {
  description = "The Region."
  type        = string
}

variable "name" {
  description = "The name of the gateway, and the first part of all other names."
  type        = string
  default     = "gateway"

  validation {
    # https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_CreateLoadBalancer.html
    condition     = can(regex("^[a-z][a-z0-9-]{0,30}[a-z0-9]$", var.name)) && !startswith(var.name, "internal-")
    error_message = "name has 2 to 32 lower-case letters, digits and hyphens. It begins with a letter, doesn't end with a hyphen, and doesn't begin with \"internal-\"."
  }
}

# --- Network

variable "vpc_id" {
  description = "The VPC of the nodes, or a VPC that reaches the VPC of the nodes."
  type        = string
}

variable "public_subnet_ids" {
  description = "Public subnets for the load balancer, in two Availability Zones or more."
  type        = list(string)

  validation {
    condition     = length(var.public_subnet_ids) >= 2
    error_message = "public_subnet_ids names two subnets at least: an application load balancer needs two Availability Zones."
  }
}

variable "private_subnet_ids" {
  description = "Private subnets for the tasks. The subnets need a route to the registry of the image, to Secrets Manager and to CloudWatch Logs."
  type        = list(string)

  validation {
    condition     = length(var.private_subnet_ids) > 0
    error_message = "private_subnet_ids names at least one subnet."
  }
}

variable "ingress_cidr_blocks" {
  description = "The IPv4 CIDR blocks from which requests may come. The default is the whole internet."
  type        = list(string)
  default     = ["0.0.0.0/0"]

  validation {
    condition     = alltrue([for block in var.ingress_cidr_blocks : can(cidrhost(block, 0))])
    error_message = "ingress_cidr_blocks are CIDR blocks such as \"203.0.113.0/24\"."
  }
}

variable "egress_cidr_blocks" {
  description = "The destinations of the tasks' HTTPS connections: the registry of the image and AWS's endpoints."
  type        = list(string)
  default     = ["0.0.0.0/0"]
}

variable "domain_name" {
  description = "The name that users connect to, which the certificate carries."
  type        = string
}

variable "certificate_arn" {
  description = "A certificate of ACM for domain_name. With null, ACM issues a new certificate, and zone_name holds the record that proves the name."
  type        = string
  default     = null

  validation {
    condition     = var.certificate_arn == null || can(regex("^arn:[a-z-]+:acm:[a-z0-9-]+:[0-9]{12}:certificate/", var.certificate_arn))
    error_message = "certificate_arn is the ARN of a certificate of ACM."
  }

  validation {
    condition     = var.certificate_arn != null || var.zone_name != null
    error_message = "A new certificate needs zone_name. Without a zone, give certificate_arn."
  }
}

variable "zone_name" {
  description = "An existing public hosted zone for domain_name, by name. With null, a record of yours leads domain_name to the load balancer."
  type        = string
  default     = null

  validation {
    condition     = var.zone_name == null ? true : endswith(".${var.domain_name}", ".${var.zone_name}")
    error_message = "domain_name is zone_name or a name below zone_name."
  }
}

# --- NATS

variable "connection_secret_arn" {
  description = "The secret of the connection document: the output connection_secret_arn of the nodes."
  type        = string
}

variable "connection_secret_key_arn" {
  description = "The KMS key of the secret: the output secrets_key_arn of the nodes. \"\" means the key aws/secretsmanager."
  type        = string
  default     = ""
}

variable "server_security_group_ids" {
  description = "The security groups of the nodes and of their load balancer: the outputs node_security_group_id and clients_security_group_id of the nodes."
  type        = list(string)
}

# --- Service

variable "image" {
  description = "The image of the service: an HTTP server that connects to NATS by NATS_URL, NATS_CA and NATS_TLS_REQUIRED (docs/clients.md)."
  type        = string
}

variable "container_port" {
  description = "The port where the container serves HTTP."
  type        = number
  default     = 8080

  validation {
    condition     = var.container_port >= 1 && var.container_port <= 65535 && floor(var.container_port) == var.container_port
    error_message = "container_port is a whole number from 1 to 65535."
  }
}

variable "health_path" {
  description = "The path that answers 200 while the service is connected to NATS."
  type        = string
  default     = "/health"

  validation {
    condition     = startswith(var.health_path, "/")
    error_message = "health_path begins with \"/\"."
  }
}

variable "environment" {
  description = "More variables of the container."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.environment) : !startswith(name, "NATS_")])
    error_message = "environment has no NATS_ variables, because these come from the connection document."
  }
}

variable "tasks" {
  description = "The number of tasks. With two, a broken task leaves the other."
  type        = number
  default     = 2

  validation {
    condition     = var.tasks >= 1 && floor(var.tasks) == var.tasks
    error_message = "tasks is a whole number, 1 at least."
  }
}

variable "cpu" {
  description = "The CPU units of a task: 1024 are one vCPU."
  type        = number
  default     = 256
}

variable "memory" {
  description = "The memory of a task in MiB, in a combination with cpu that Fargate has."
  type        = number
  default     = 512
}

variable "cpu_architecture" {
  description = "The architecture of the image: \"X86_64\" or \"ARM64\"."
  type        = string
  default     = "X86_64"

  validation {
    condition     = contains(["X86_64", "ARM64"], var.cpu_architecture)
    error_message = "cpu_architecture is \"X86_64\" or \"ARM64\"."
  }
}

# --- Operation

variable "alarm_actions" {
  description = "What hears of an alarm and of its end, for instance the ARN of an SNS topic."
  type        = list(string)
  default     = []
}

variable "alarm_5xx" {
  description = "The number of 5xx answers in a minute that counts as a fault. Three such minutes of five raise the alarm."
  type        = number
  default     = 1
}

variable "deletion_protection" {
  description = "Whether the load balancer refuses to be deleted. Apply the value false before a destroy."
  type        = bool
  default     = true
}
