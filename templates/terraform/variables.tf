# Validations share these patterns. A local value that depends on a variable would make a circle with the variable's validation.
locals {
  secret_arn = "^arn:[a-z-]+:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[A-Za-z0-9/_+=.@!-]+-[A-Za-z0-9]{6}$"
  key_arn    = "^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+$"
}

variable "name" {
  description = "The name of the Auto Scaling group and of the NATS cluster, and the first part of all other names."
  type        = string
  default     = "nats"

  validation {
    # A load balancer's name has 32 characters at most, and this module appends "-clients".
    condition     = can(regex("^[a-z][a-z0-9-]{0,22}[a-z0-9]$", var.name))
    error_message = "name has 2 to 24 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "tags" {
  description = "Tags of all resources, including the instances and their volumes."
  type        = map(string)
  default     = {}
}

# --- Network

variable "vpc_id" {
  description = "The VPC. Its attributes enableDnsSupport and enableDnsHostnames must be on, because nodes find each other by instance-id host names."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets for the nodes and the load balancer, one for each Availability Zone. The subnets need a route to AWS's endpoints and to the two packages."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) > 0 && length(distinct(var.subnet_ids)) == length(var.subnet_ids)
    error_message = "subnet_ids names at least one subnet, and none twice."
  }
}

variable "client_cidr_blocks" {
  description = "The IPv4 CIDR blocks from which clients may connect to port 4222."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for block in var.client_cidr_blocks : can(cidrhost(block, 0)) && block != "0.0.0.0/0"])
    error_message = "client_cidr_blocks are CIDR blocks such as \"10.0.0.0/16\", and not the whole internet."
  }
}

variable "client_security_group_ids" {
  description = "The security groups of clients that may connect to port 4222."
  type        = list(string)
  default     = []
}

variable "metrics_security_group_ids" {
  description = "The security groups of scrapers that may connect to the agents' metrics on port 9464. The agents then listen there on all addresses. Adding the first group replaces every node."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for id in var.metrics_security_group_ids : startswith(id, "sg-")])
    error_message = "metrics_security_group_ids are ids of security groups, such as \"sg-0123456789abcdef0\"."
  }
}

variable "egress_cidr_blocks" {
  description = "The destinations of the nodes' HTTPS connections: AWS's endpoints and the source of the packages. The VPC's own block is enough if the VPC has interface endpoints for all these destinations. A gateway endpoint needs egress_prefix_list_ids."
  type        = list(string)
  default     = ["0.0.0.0/0"]
}

variable "egress_prefix_list_ids" {
  description = "More destinations of the nodes' HTTPS connections, by prefix list. A gateway endpoint, for instance for packages in S3, has its list in the attribute prefix_list_id."
  type        = list(string)
  default     = []
}

variable "client_dns_name" {
  description = "The name that clients connect to, in its own private zone in the VPC. Every node's certificate carries the name."
  type        = string
  default     = "nats.internal"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$", var.client_dns_name))
    error_message = "client_dns_name is a host name of two labels or more, in lower case."
  }
}

variable "additional_dns_names" {
  description = "More names under which clients reach the nodes. The certificates carry them, and no DNS record is made."
  type        = list(string)
  default     = []
}

variable "deletion_protection" {
  description = "Whether the load balancer refuses to be deleted. Apply the value false before a destroy."
  type        = bool
  default     = true
}

variable "existing_load_balancer" {
  description = <<-EOT
    An existing network load balancer for clients, instead of a new load balancer. The group registers its nodes with the target group, which
    has targets of the type "instance" and passes TCP on to port 4222. The name client_dns_name becomes an alias of dns_name and zone_id.
    The nodes admit the load balancer's security groups. The rules of these groups belong to their owner.
    A load balancer without a security group needs its subnets in client_cidr_blocks, for its health checks.
  EOT
  type = object({
    target_group_arn   = string
    dns_name           = string
    zone_id            = string
    security_group_ids = optional(list(string), [])
  })
  default = null

  validation {
    condition     = var.existing_load_balancer == null || can(regex("^arn:[a-z-]+:elasticloadbalancing:[a-z0-9-]+:[0-9]{12}:targetgroup/", var.existing_load_balancer.target_group_arn))
    error_message = "existing_load_balancer.target_group_arn is the ARN of a target group."
  }

  validation {
    condition     = var.existing_load_balancer == null || length(try(var.existing_load_balancer.security_group_ids, [])) + length(var.client_cidr_blocks) > 0
    error_message = "existing_load_balancer needs security_group_ids. Without a security group, client_cidr_blocks needs the subnets of the load balancer."
  }
}

variable "existing_zone" {
  description = "An existing hosted zone for client_dns_name, by id, instead of a new private zone. The zone is private in the VPC of the nodes, or public."
  type        = object({ id = string })
  default     = null

  validation {
    condition     = var.existing_zone == null || can(regex("^Z[A-Z0-9]+$", var.existing_zone.id))
    error_message = "existing_zone.id is the id of a hosted zone, such as \"Z0123456789ABCDEFGHIJ\"."
  }
}

# --- Certificates

variable "existing_ca" {
  description = <<-EOT
    An existing private CA that signs the nodes' certificates, instead of a new CA. The account of the nodes owns the CA, or the
    owner shares the CA. The nodes trust the CA's root. short_lived_ca then tells the mode of this CA. ca_common_name and
    ca_validity_years have no effect.
  EOT
  type        = object({ arn = string })
  default     = null

  validation {
    condition     = var.existing_ca == null || can(regex("^arn:[a-z-]+:acm-pca:[a-z0-9-]+:[0-9]{12}:certificate-authority/[A-Za-z0-9-]+$", var.existing_ca.arn))
    error_message = "existing_ca.arn is the ARN of a private CA."
  }
}

variable "existing_trust_secret" {
  description = "An existing secret with the trust bundle, instead of a new secret. The bundle contains the root of the CA, or no node starts. key_arns names the secret's KMS key, where the secret has a key of its own."
  type        = object({ arn = string, key_arns = optional(list(string), []) })
  default     = null

  validation {
    condition     = var.existing_trust_secret == null || can(regex(local.secret_arn, var.existing_trust_secret.arn))
    error_message = "existing_trust_secret.arn is the whole ARN of a secret, with the six random characters at its end."
  }

  validation {
    condition     = alltrue([for arn in try(var.existing_trust_secret.key_arns, []) : can(regex(local.key_arn, arn))])
    error_message = "existing_trust_secret.key_arns are ARNs of KMS keys, and not of aliases."
  }
}

variable "existing_cluster_secret" {
  description = "An existing secret with the cluster credential, instead of a new secret: {\"username\": …, \"password\": …}. The secret's resource policy stays as it is. key_arns names the secret's KMS key, where the secret has a key of its own."
  type        = object({ arn = string, key_arns = optional(list(string), []) })
  default     = null

  validation {
    condition     = var.existing_cluster_secret == null || can(regex(local.secret_arn, var.existing_cluster_secret.arn))
    error_message = "existing_cluster_secret.arn is the whole ARN of a secret, with the six random characters at its end."
  }

  validation {
    condition     = alltrue([for arn in try(var.existing_cluster_secret.key_arns, []) : can(regex(local.key_arn, arn))])
    error_message = "existing_cluster_secret.key_arns are ARNs of KMS keys, and not of aliases."
  }
}

variable "short_lived_ca" {
  description = <<-EOT
    Whether the private CA is in short-lived mode. Such a CA issues certificates of seven days at most and costs $50 a month.
    A CA in general-purpose mode issues certificates of any lifetime and costs $400 a month. Each certificate costs extra
    (https://aws.amazon.com/private-ca/pricing/). With a lifetime of seven days, a node takes about seven certificates a month.
    The mode of a CA can't change, so another mode needs another CA. Terraform refuses a plan that deletes the nodes' current CA.
    Read "Rotating the CA" in docs/operations.md of nats-tls-agent first.
  EOT
  type        = bool
  default     = true
}

variable "ca_common_name" {
  description = "The subject of the root certificate. With null, the subject is \"NAME root\"."
  type        = string
  default     = null
}

variable "ca_validity_years" {
  description = "The lifetime of the root certificate. Only a rotation of the CA renews it."
  type        = number
  default     = 10
}

variable "certificate_validity" {
  description = "The lifetime of a node's certificate, for instance \"7d\" or \"12h\"."
  type        = string
  default     = "7d"

  validation {
    condition     = can(regex("^[1-9][0-9]*(m|h|d)$", var.certificate_validity))
    error_message = "certificate_validity is a number of minutes, hours or days, for instance \"12h\" or \"7d\"."
  }

  validation {
    # https://docs.aws.amazon.com/privateca/latest/userguide/short-lived-certificates.html
    condition = !var.short_lived_ca || try(
      tonumber(regex("^[0-9]+", var.certificate_validity)) * { m = 1, h = 60, d = 24 * 60 }[substr(var.certificate_validity, -1, 1)],
      0,
    ) <= 7 * 24 * 60
    error_message = "A CA in short-lived mode issues certificates of 7 days at most."
  }
}

variable "additional_trust_anchors" {
  description = "More CA certificates in PEM that nodes and clients accept: the old or the next CA during a rotation."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for pem in var.additional_trust_anchors : startswith(trimspace(pem), "-----BEGIN CERTIFICATE-----")])
    error_message = "additional_trust_anchors are certificates in PEM."
  }

  validation {
    condition     = length(var.additional_trust_anchors) == 0 || var.existing_trust_secret == null
    error_message = "additional_trust_anchors go into a bundle that the module makes. Put them into existing_trust_secret yourself."
  }
}

# --- Nodes

variable "size" {
  description = "The number of nodes. Streams with three replicas need three nodes."
  type        = number
  default     = 3

  validation {
    condition     = var.size >= 1 && var.size <= 50 && floor(var.size) == var.size
    error_message = "size is a whole number from 1 to 50."
  }
}

variable "ami_id" {
  description = "The image: Amazon Linux 2023, Debian 12 or Ubuntu 22.04. A new image replaces every node, so give a fixed image and not \"the latest\"."
  type        = string
}

variable "instance_type" {
  description = "The instance type. The image and the packages must have the same architecture."
  type        = string
  default     = "m7i.large"
}

variable "root_volume_gib" {
  description = "The size of the root volume, where JetStream keeps its streams. The volume ends with the instance."
  type        = number
  default     = 50
}

variable "nats_server_url" {
  description = "nats-server 2.10 or later for the nodes' architecture: the .tar.gz, .deb or .rpm of a release. The URL must work for as long as nodes are started, so a presigned URL is not enough."
  type        = string

  validation {
    condition     = can(regex("^https://[^/:'\\s]+(:443)?/[^'\\s]+$", var.nats_server_url))
    error_message = "nats_server_url is an HTTPS URL, on port 443: nodes connect to no other."
  }
}

variable "nats_server_sha256" {
  description = "The SHA-256 of the file, in hexadecimal."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.nats_server_sha256))
    error_message = "nats_server_sha256 is 64 hexadecimal digits, in lower case."
  }
}

variable "agent_url" {
  description = "The package of nats-tls-agent: .rpm for Amazon Linux, .deb for Debian and Ubuntu. The URL must work for as long as nodes are started."
  type        = string

  validation {
    condition     = can(regex("^https://[^/:'\\s]+(:443)?/[^'\\s]+\\.(deb|rpm)([?][^'\\s]*)?$", var.agent_url))
    error_message = "agent_url is the HTTPS URL of a .deb or .rpm, on port 443: nodes connect to no other."
  }
}

variable "agent_sha256" {
  description = "The SHA-256 of the file, in hexadecimal."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.agent_sha256))
    error_message = "agent_sha256 is 64 hexadecimal digits, in lower case."
  }
}

variable "addresses" {
  description = "How a node finds the addresses of other nodes. \"dns\" resolves instance-id host names and needs no EC2 permission. \"ec2\" calls DescribeInstances."
  type        = string
  default     = "dns"

  validation {
    condition     = contains(["dns", "ec2"], var.addresses)
    error_message = "addresses is \"dns\" or \"ec2\"."
  }
}

variable "extra_nats_config" {
  description = "More of nats-server's own configuration, in its language: accounts, a system account, limits. Whoever may read user data can read this text, so give users an NKey or a JWT and not a password, or use included_secret_arns. A change replaces every node."
  type        = string
  default     = ""
}

variable "included_secret_arns" {
  description = "Secrets of Secrets Manager with more of nats-server's own configuration, in its language: accounts, users, limits. The nodes poll them, so a new version of a secret replaces no node, and a change of this list does. A later secret's settings come after those of extra_nats_config and of the secrets before it."
  type        = list(string)
  default     = []

  validation {
    condition = alltrue([
      for arn in var.included_secret_arns :
      can(regex(local.secret_arn, arn))
    ])
    error_message = "included_secret_arns are whole ARNs of secrets, with the six random characters at their end."
  }

  validation {
    condition     = length(distinct(var.included_secret_arns)) == length(var.included_secret_arns)
    error_message = "included_secret_arns names no secret twice."
  }

  validation {
    # The inline policies of a role have 10,240 characters at most, and user data has 16 KiB at most
    # (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html).
    condition     = length(var.included_secret_arns) <= 20
    error_message = "included_secret_arns names 20 secrets at most."
  }
}

variable "system_secret_arn" {
  description = "A secret of Secrets Manager with credentials of a user of the system account, as operator mode needs: the text of a .creds file. Empty: the agent makes a user of its own where that changes nothing for clients."
  type        = string
  default     = ""

  validation {
    condition     = var.system_secret_arn == "" || can(regex(local.secret_arn, var.system_secret_arn))
    error_message = "system_secret_arn is the whole ARN of a secret, with the six random characters at its end."
  }
}

variable "client_trust_secret_arn" {
  description = "A secret of Secrets Manager with the CAs of clients, in PEM. Empty: clients present certificates of the CAs of nodes. A change replaces every node."
  type        = string
  default     = ""

  validation {
    condition     = var.client_trust_secret_arn == "" || can(regex(local.secret_arn, var.client_trust_secret_arn))
    error_message = "client_trust_secret_arn is the whole ARN of a secret, with the six random characters at its end."
  }

  validation {
    condition     = var.client_trust_secret_arn == "" || !can(regex("(?m)^\\s*\\[trust\\.clients\\]", var.extra_agent_toml))
    error_message = "client_trust_secret_arn writes the table [trust.clients], so extra_agent_toml has none."
  }
}

variable "connection_document" {
  description = "Whether the module makes a secret (output connection_secret_arn) in which the nodes keep the connection document. The document has the URLs, the trust bundle and the rest that a client needs. A change replaces every node."
  type        = bool
  default     = false

  validation {
    condition     = !(var.connection_document || var.existing_connection_secret != null) || !can(regex("(?m)^\\s*\\[connection\\]", var.extra_agent_toml))
    error_message = "connection_document writes the table [connection], so extra_agent_toml has none."
  }
}

variable "existing_connection_secret" {
  description = "An existing secret in which the nodes keep the connection document, instead of a new secret. The variable implies connection_document. key_arns names the secret's KMS key, where the secret has a key of its own. A change replaces every node."
  type        = object({ arn = string, key_arns = optional(list(string), []) })
  default     = null

  validation {
    condition     = var.existing_connection_secret == null || can(regex(local.secret_arn, var.existing_connection_secret.arn))
    error_message = "existing_connection_secret.arn is the whole ARN of a secret, with the six random characters at its end."
  }

  validation {
    condition     = alltrue([for arn in try(var.existing_connection_secret.key_arns, []) : can(regex(local.key_arn, arn))])
    error_message = "existing_connection_secret.key_arns are ARNs of KMS keys, and not of aliases."
  }
}

variable "included_secret_key_arns" {
  description = "The KMS keys of included secrets, of system_secret_arn and of client_trust_secret_arn, where a secret has a key of its own. Neither aws/secretsmanager nor the module's own key (output secrets_key_arn) belongs here."
  type        = list(string)
  default     = []

  validation {
    condition = alltrue([
      for arn in var.included_secret_key_arns : can(regex(local.key_arn, arn))
    ])
    error_message = "included_secret_key_arns are ARNs of KMS keys, and not of aliases."
  }
}

variable "extra_agent_toml" {
  description = "More of agent.toml. Keys of [nats] come first, for instance client_auth. Tables that ../user-data doesn't have follow, for instance [nats.jetstream] or [metrics]. A change replaces every node."
  type        = string
  default     = ""
}

variable "additional_policy_arns" {
  description = "More policies of the nodes' role, for instance AmazonSSMManagedInstanceCore to log in to the nodes."
  type        = list(string)
  default     = []
}

variable "health_check_type" {
  description = "\"EC2\" replaces a node only if its machine is broken. \"ELB\" also replaces a node that doesn't listen on port 4222, together with its streams. A fault that all nodes share for five minutes replaces every node. With \"EC2\" a refresh continues even if a new node never serves."
  type        = string
  default     = "EC2"

  validation {
    condition     = contains(["EC2", "ELB"], var.health_check_type)
    error_message = "health_check_type is \"EC2\" or \"ELB\"."
  }
}

variable "scale_in_protection" {
  description = "Whether the group removes no node when its size shrinks. A node holds its streams, so a person removes a node. An instance refresh and a failed health check replace protected nodes all the same."
  type        = bool
  default     = true
}

variable "boot_seconds" {
  description = "The seconds that a new node may take until it serves. A node that takes longer counts as unhealthy."
  type        = number
  default     = 600
}

variable "refresh_pause_seconds" {
  description = "The pause of an instance refresh after each replaced node, in seconds. In this time an operator removes the replaced node from JetStream's meta group (see the README)."
  type        = number
  default     = 3600

  validation {
    # https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_RefreshPreferences.html
    condition     = var.refresh_pause_seconds >= 0 && var.refresh_pause_seconds <= 172800
    error_message = "refresh_pause_seconds lies between 0 and 172800, two days."
  }
}
