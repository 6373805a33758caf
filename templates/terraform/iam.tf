# The nodes' role has the policies of ../iam. The tests compare these policies with the agent's calls.

resource "aws_iam_role" "node" {
  name               = "${var.name}-node"
  description        = "The nodes of ${var.name}"
  assume_role_policy = file("${path.module}/../iam/node-trust.json")
  tags               = var.tags
}

resource "aws_iam_role_policy" "agent" {
  name = "nats-tls-agent"
  role = aws_iam_role.node.id
  policy = templatefile("${path.module}/../iam/node.json", {
    ca_arn             = local.ca_arn
    template_arn       = "arn:${data.aws_partition.current.partition}:acm-pca:::template/EndEntityCertificate/V1"
    trust_secret_arn   = local.trust_secret_arn
    cluster_secret_arn = local.cluster_secret_arn
  })
}

resource "aws_iam_role_policy" "own_key" {
  count = length(aws_kms_key.secrets)

  name = "nats-tls-agent-own-key"
  role = aws_iam_role.node.id
  policy = templatefile("${path.module}/../iam/node-own-key.json", {
    kms_key_arn = aws_kms_key.secrets[0].arn
    region      = data.aws_region.current.region
  })
}

# The index is a number, because a KMS key that is made in the same run has no ARN yet.
resource "aws_iam_role_policy" "existing_keys" {
  count = length(local.existing_key_arns)

  name = "nats-tls-agent-existing-key-${count.index}"
  role = aws_iam_role.node.id
  policy = templatefile("${path.module}/../iam/node-own-key.json", {
    kms_key_arn = local.existing_key_arns[count.index]
    region      = data.aws_region.current.region
  })
}

resource "aws_iam_role_policy" "included_secrets" {
  count = length(var.included_secret_arns) > 0 ? 1 : 0

  name   = "nats-tls-agent-included-secrets"
  role   = aws_iam_role.node.id
  policy = templatefile("${path.module}/../iam/node-included-secrets.json", { included_secret_arns = jsonencode(var.included_secret_arns) })
}

resource "aws_iam_role_policy" "system_secret" {
  count = var.system_secret_arn == "" ? 0 : 1

  name   = "nats-tls-agent-system-secret"
  role   = aws_iam_role.node.id
  policy = templatefile("${path.module}/../iam/node-included-secrets.json", { included_secret_arns = jsonencode([var.system_secret_arn]) })
}

resource "aws_iam_role_policy" "client_trust" {
  count = var.client_trust_secret_arn == "" ? 0 : 1

  name   = "nats-tls-agent-client-trust"
  role   = aws_iam_role.node.id
  policy = templatefile("${path.module}/../iam/node-included-secrets.json", { included_secret_arns = jsonencode([var.client_trust_secret_arn]) })
}

resource "aws_iam_role_policy" "connection" {
  count = local.keeps_connection ? 1 : 0

  name   = "nats-tls-agent-connection"
  role   = aws_iam_role.node.id
  policy = templatefile("${path.module}/../iam/node-connection.json", { connection_secret_arn = local.connection_secret_arn })
}

resource "aws_iam_role_policy" "connection_key" {
  count = length(local.connection_key_arns)

  # The first policy has no number, so a role of an earlier version keeps its policy.
  name = "nats-tls-agent-connection-key${count.index == 0 ? "" : "-${count.index}"}"
  role = aws_iam_role.node.id
  policy = templatefile("${path.module}/../iam/node-connection-key.json", {
    kms_key_arn = local.connection_key_arns[count.index]
    region      = data.aws_region.current.region
  })
}

resource "aws_iam_role_policy" "included_secret_keys" {
  count = length(var.included_secret_key_arns)

  name = "nats-tls-agent-included-secret-key-${count.index}"
  role = aws_iam_role.node.id
  policy = templatefile("${path.module}/../iam/node-own-key.json", {
    kms_key_arn = var.included_secret_key_arns[count.index]
    region      = data.aws_region.current.region
  })
}

resource "aws_iam_role_policy" "ec2_addresses" {
  count = var.addresses == "ec2" ? 1 : 0

  name   = "nats-tls-agent-ec2-addresses"
  role   = aws_iam_role.node.id
  policy = file("${path.module}/../iam/node-ec2-addresses.json")
}

resource "aws_iam_role_policy_attachment" "additional" {
  count = length(var.additional_policy_arns)

  role       = aws_iam_role.node.name
  policy_arn = var.additional_policy_arns[count.index]
}

resource "aws_iam_instance_profile" "node" {
  name = "${var.name}-node"
  role = aws_iam_role.node.name
  tags = var.tags
}
