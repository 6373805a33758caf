# A service's half of the connection to NATS: its role reads the connection document, and its security group reaches the
# nodes.

locals {
  # The keys of the connection document that a container needs.
  keys = ["NATS_URL", "NATS_CA", "NATS_TLS_REQUIRED", "NATS_CLIENT_CERT"]

  read_document = {
    Sid      = "ReadConnectionDocument"
    Effect   = "Allow"
    Action   = "secretsmanager:GetSecretValue"
    Resource = var.connection_secret_arn
  }

  # The role may decrypt secrets alone
  # (https://docs.aws.amazon.com/secretsmanager/latest/userguide/security-encryption.html).
  decrypt_document = {
    Sid       = "DecryptConnectionDocument"
    Effect    = "Allow"
    Action    = "kms:Decrypt"
    Resource  = var.connection_secret_key_arn
    Condition = { StringEquals = { "kms:ViaService" = "secretsmanager.${data.aws_region.current.region}.amazonaws.com" } }
  }
}

resource "aws_iam_role_policy" "connection" {
  name = "nats-connection"
  role = var.role_name
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [for statement in [local.read_document, local.decrypt_document] : statement if statement.Resource != ""]
  })
}

# The key is a number, because a group that is made in the same run has no id yet.
resource "aws_vpc_security_group_ingress_rule" "client" {
  count = length(var.server_security_group_ids)

  security_group_id            = var.server_security_group_ids[count.index]
  description                  = "A service that uses NATS"
  referenced_security_group_id = var.client_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = var.port
  to_port                      = var.port
}

resource "aws_vpc_security_group_egress_rule" "client" {
  count = length(var.server_security_group_ids)

  security_group_id            = var.client_security_group_id
  description                  = "NATS"
  referenced_security_group_id = var.server_security_group_ids[count.index]
  ip_protocol                  = "tcp"
  from_port                    = var.port
  to_port                      = var.port
}
