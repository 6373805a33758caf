# The HTTP service on Fargate. A task reads the connection document at its start.

resource "aws_ecs_cluster" "gateway" {
  name = var.name

  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}

resource "aws_cloudwatch_log_group" "gateway" {
  #checkov:skip=CKV_AWS_158:CloudWatch encrypts each log group with a key of its own. This example adds no further key.
  #checkov:skip=CKV_AWS_338:A month of an example's logs is enough. A year costs money.
  name              = "/ecs/${var.name}"
  retention_in_days = 30
}

# A container that can't read a key of the document doesn't start, and the event of the service names the key.
resource "aws_ecs_task_definition" "gateway" {
  #checkov:skip=CKV_AWS_336:The image is a variable, and the example doesn't know where the image writes.
  family                   = var.name
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.cpu
  memory                   = var.memory
  execution_role_arn       = aws_iam_role.execution.arn
  task_role_arn            = aws_iam_role.task.arn

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = var.cpu_architecture
  }

  container_definitions = jsonencode([merge(module.nats.container, {
    name         = "gateway"
    image        = var.image
    essential    = true
    environment  = [for name, value in var.environment : { name = name, value = value }]
    portMappings = [{ containerPort = var.container_port, protocol = "tcp" }]
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.gateway.name
        awslogs-region        = var.region
        awslogs-stream-prefix = "gateway"
      }
    }
  })])
}

resource "aws_ecs_service" "gateway" {
  name            = var.name
  cluster         = aws_ecs_cluster.gateway.arn
  task_definition = aws_ecs_task_definition.gateway.arn
  desired_count   = var.tasks
  launch_type     = "FARGATE"

  # ECS waits this long for a task that is still connecting to NATS.
  health_check_grace_period_seconds = 60

  # A task ends only after its successor is healthy.
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200

  # The last version that worked returns where new tasks don't become healthy
  # (https://docs.aws.amazon.com/AmazonECS/latest/developerguide/deployment-circuit-breaker.html).
  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = var.private_subnet_ids
    security_groups  = [aws_security_group.service.id]
    assign_public_ip = false
  }

  load_balancer {
    target_group_arn = aws_lb_target_group.gateway.arn
    container_name   = "gateway"
    container_port   = var.container_port
  }

  # ECS takes targets only once a listener uses the target group. A task needs its role's policies and its rules.
  depends_on = [
    aws_lb_listener.https,
    aws_iam_role_policy_attachment.execution,
    aws_vpc_security_group_ingress_rule.from_load_balancer,
    aws_vpc_security_group_egress_rule.aws,
    module.nats,
  ]
}

locals {
  # Only tasks of this account get a role
  # (https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-iam-roles.html).
  trust_of_tasks = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
      Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.current.account_id } }
    }]
  })
}

# ECS itself has this role, pulls the image, writes the log and reads the document.
resource "aws_iam_role" "execution" {
  name               = "${var.name}-execution"
  description        = "ECS starts tasks of ${var.name}"
  assume_role_policy = local.trust_of_tasks
}

resource "aws_iam_role_policy_attachment" "execution" {
  role       = aws_iam_role.execution.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"
}

# The container has this role, which allows nothing. NATS needs no permission of AWS.
resource "aws_iam_role" "task" {
  name               = "${var.name}-task"
  description        = "Tasks of ${var.name}"
  assume_role_policy = local.trust_of_tasks
}

resource "aws_security_group" "service" {
  name_prefix = "${var.name}-service-"
  description = "The tasks of ${var.name}"
  vpc_id      = var.vpc_id

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "from_load_balancer" {
  security_group_id            = aws_security_group.service.id
  description                  = "The load balancer"
  referenced_security_group_id = aws_security_group.load_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = var.container_port
  to_port                      = var.container_port
}

resource "aws_vpc_security_group_egress_rule" "aws" {
  for_each = toset(var.egress_cidr_blocks)

  security_group_id = aws_security_group.service.id
  description       = "AWS endpoints and the image"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}
