# The secrets hold the trust bundle and the cluster credential. The bundle is public. It is in a secret because the agent
# and clients look there for changes. The credential is confidential.

locals {
  makes_trust      = var.existing_trust_secret == null
  makes_credential = var.existing_cluster_secret == null
  makes_connection = var.connection_document && var.existing_connection_secret == null
  keeps_connection = var.connection_document || var.existing_connection_secret != null

  trust_secret_arn      = local.makes_trust ? aws_secretsmanager_secret.trust[0].arn : var.existing_trust_secret.arn
  cluster_secret_arn    = local.makes_credential ? aws_cloudformation_stack.cluster_credential[0].outputs["Arn"] : var.existing_cluster_secret.arn
  connection_secret_arn = local.makes_connection ? aws_secretsmanager_secret.connection[0].arn : one(var.existing_connection_secret[*].arn)

  # Existing secrets may share a key, and a key that is made in the same run has no ARN yet. So a repeated key stays.
  existing_key_arns = flatten([
    for secret in [var.existing_trust_secret, var.existing_cluster_secret, var.existing_connection_secret] :
    secret.key_arns if secret != null
  ])
  connection_key_arns = local.makes_connection ? aws_kms_key.secrets[*].arn : flatten(var.existing_connection_secret[*].key_arns)
}

resource "aws_kms_key" "secrets" {
  count = local.makes_trust || local.makes_credential || local.makes_connection ? 1 : 0

  description             = "The secrets of ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  tags                    = var.tags

  # This policy leaves every decision to the account's IAM policies. The policy of the nodes' role allows decryption only through Secrets Manager
  # (https://docs.aws.amazon.com/kms/latest/developerguide/key-policy-default.html).
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "AccountDecides"
      Effect    = "Allow"
      Principal = { AWS = "arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:root" }
      Action    = "kms:*"
      Resource  = "*"
    }]
  })
}

resource "aws_secretsmanager_secret" "trust" {
  #checkov:skip=CKV2_AWS_57:The secret holds CA certificates. A rotation of the CA changes them step by step, and not on a schedule.
  count = local.makes_trust ? 1 : 0

  name_prefix = "${var.name}/trust-bundle-"
  description = "CA certificates that nodes and clients of ${var.name} accept"
  kms_key_id  = aws_kms_key.secrets[0].arn
  tags        = var.tags
}

resource "aws_secretsmanager_secret_version" "trust" {
  count = local.makes_trust ? 1 : 0

  secret_id     = aws_secretsmanager_secret.trust[0].id
  secret_string = join("\n", concat([trimspace(local.ca_certificate)], var.additional_trust_anchors, [""]))
}

# The nodes write the content, so the secret has no version of Terraform's.
resource "aws_secretsmanager_secret" "connection" {
  #checkov:skip=CKV2_AWS_57:The secret holds public facts, and the nodes keep them current.
  count = local.makes_connection ? 1 : 0

  name_prefix = "${var.name}/connection-"
  description = "What a client of ${var.name} needs to connect"
  kms_key_id  = aws_kms_key.secrets[0].arn
  tags        = var.tags
}

# AWS makes the password through CloudFormation, so the password exists in the secret alone. A password from Terraform would
# be in Terraform's state. With a write-only argument, Terraform would still need permission to read the secret at each
# refresh. To change the password, put a new version into the secret without Terraform (docs/operations.md of
# nats-tls-agent, "The cluster credential").
resource "aws_cloudformation_stack" "cluster_credential" {
  #checkov:skip=CKV_AWS_124:The stack makes one secret once. Terraform itself waits for the stack and reports a failure.
  count = local.makes_credential ? 1 : 0

  name = "${var.name}-cluster-credential"
  tags = var.tags

  template_body = jsonencode({
    Resources = {
      Secret = {
        Type = "AWS::SecretsManager::Secret"
        Properties = {
          Description = "What a server of ${var.name} has to present to join as a server"
          KmsKeyId    = aws_kms_key.secrets[0].arn
          GenerateSecretString = {
            SecretStringTemplate = jsonencode({ username = "route" })
            GenerateStringKey    = "password"
            PasswordLength       = 64
            ExcludePunctuation   = true
          }
        }
      }
    }
    Outputs = {
      # Ref is the ARN (https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/aws-resource-secretsmanager-secret.html).
      Arn = { Value = { Ref = "Secret" } }
    }
  })
}

# The policy of an existing secret belongs to the secret's owner.
resource "aws_secretsmanager_secret_policy" "cluster_credential" {
  count = local.makes_credential ? 1 : 0

  secret_arn          = local.cluster_secret_arn
  block_public_policy = true
  policy              = templatefile("${path.module}/../iam/cluster-secret.json", { node_role_arn = aws_iam_role.node.arn })
}
